"""Class-incremental runs: methods on one stream, task after task."""
