"""Studies: a matrix of jobs over variants and seeds, run in FLARE's simulator, measured person by person, and told."""
