"""Runs that are killed at random moments, and streams that go on for long.

``python -m reliability`` in the folder tests, or ``make reliability``.
"""
