"""The kinds of streams that a learner may be able to take."""

from __future__ import annotations

__all__ = ["FEW", "SCENARIOS"]

SCENARIOS: tuple[str, ...] = ("class-incremental", "domain-incremental", "blurry", "class-repetition", "online")
"""What a stream may be, and what :attr:`flexkern.learners.Learner.takes` names.

class-incremental: each experience brings classes that are new, and no others.
domain-incremental: all experiences have the same classes, each from another domain.
blurry: an experience has classes of its own, and some images of others', so that classes come before and after.
class-repetition: an experience has some of the classes, new ones or known ones, as they are drawn.
online: an experience is a few images, or a single one, of any classes, and comes once.
"""

FEW = 16
"""An experience of fewer inputs than this is a piece of an online stream: nothing is fitted to it alone, such
as the temperature of probabilities, and it may cost no more than its inputs do."""
