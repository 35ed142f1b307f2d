"""What is asked before there is anything to answer from."""

from __future__ import annotations

__all__ = ["NotLearnedError"]


class NotLearnedError(RuntimeError):
    """A learner, a head or a gate was asked before it had learned anything: learn an experience first."""
