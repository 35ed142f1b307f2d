"""Learners: whole networks that take a stream, one experience after the other."""

from flexkern.learners.metaplastic import MetaplasticMLP, Progress

__all__ = ["MetaplasticMLP", "Progress"]
