"""``scale="auto"``: the scale of the flexible update that the data asks for.

The scale s of ``k = s (1 - f) / f |w - a|`` only has meaning relative to how far weights move while an item
is learned, and that depends on the learning rate, the features, the batch size and the length of an item.
So it is measured: the first item is learned with alpha = 1, and then ``s = AUTO_SCALE_C / displacement``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["AUTO_SCALE_C", "auto_scale"]

AUTO_SCALE_C = 1.0


def auto_scale(displacements: Sequence[Tensor], c: float = AUTO_SCALE_C) -> float:
    """One scale for all flexible weights of a group, from what the first item did to them.

    Args:
        displacements: w - a after the first item, learned with alpha = 1, of each flexible parameter of the
            group in its order; at least one, none of them empty.
        c: how many mean displacements of the first parameter bring k of a synapse with f = 0.5 to 1.

    Returns:
        ``c / mean |w - a|`` of the first parameter; ``inf`` where it has not moved.
    """
    displacement = displacements[0].abs().mean().item()
    return c / displacement if displacement else float("inf")
