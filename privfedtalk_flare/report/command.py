"""`privfedtalk report`: finds out what it is given, and writes its page."""

from __future__ import annotations

from pathlib import Path

from privfedtalk_flare.evaluation.summary import find_summary, load_summary
from privfedtalk_flare.report import run, study
from privfedtalk_flare.report.page import write_page
from privfedtalk_flare.study.runner import STUDY, results_in


def report(path: Path, out: Path | None, weights: Path | None) -> Path:
    """Writes the page of the study or the run in `path` to `out` (None: `report.html` beside it), and returns where.
    `weights`: folder of networks for the metrics that need one. Raises ValueError where `path` is neither."""
    if (path / STUDY).is_file():
        results = results_in(path)
        return write_page(out or path / "report.html", f"Study: {results.study.name}", results.study.question,
                          study.sections_of(results, path, weights))
    file = find_summary(path)
    summary = load_summary(file)
    folder = path if path.is_dir() else path.parent
    return write_page(out or folder / "report.html", "PrivFedTalk run", run.lead(summary),
                      run.sections_of(summary, file, weights))
