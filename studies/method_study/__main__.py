"""Runs the method study; see :mod:`studies.method_study.run`."""

from studies.method_study.run import main

if __name__ == "__main__":
    main()
