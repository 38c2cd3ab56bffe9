"""One page that shows a run or a study: videos, tables, curves, in one HTML file that needs nothing else."""
