"""Streams of experiences: what a continual learner meets, one item after the other."""

from flexkern.streams.base import Experience, Stream
from flexkern.streams.digits import bundled_digits, mnist
from flexkern.streams.two_digit import two_digit_stream

__all__ = ["Experience", "Stream", "bundled_digits", "mnist", "two_digit_stream"]
