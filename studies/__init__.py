"""One-off investigations, run from a checkout: ``python -m studies.NAME --help``. Not in the wheel."""
