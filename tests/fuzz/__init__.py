"""Random cases by the hundred thousand, each one judged: ``python -m fuzz`` in the folder tests, or
``make fuzz``."""
