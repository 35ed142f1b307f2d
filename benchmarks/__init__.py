"""What flexkern gains: ``flexkern bench``, ``python -m flexkern.benchmarks`` or ``pytest benchmarks/``.

:mod:`case` says what a case is and keeps the list of them; ``bench_*.py`` are the cases and the tuner's
:mod:`workloads`, a file for each family of operators, ``growth_*.py`` the series over growing work, ``peers/``
the same learners in plain PyTorch. :mod:`run` verifies, times and weighs a case; :mod:`record` keeps results,
:mod:`compare`, :mod:`tables` and :mod:`figures` read them.
"""
