"""Adapters of all tasks, and the frozen transformer that they sit in."""
