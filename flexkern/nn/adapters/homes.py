"""Memory of the host, or of its disk, for adapters that are not on the device."""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor

__all__ = ["OFFLOADS", "more_homes"]

OFFLOADS = ("cpu", "disk")
_CHUNK = 64 << 20  # bytes that are asked for at once, at most, where a task takes less


def more_homes(
    have: int, numbers: int, dtype: torch.dtype, offload: str, *, pinned: bool = False
) -> list[Tensor]:
    """Room for a few more tasks: a flat tensor of ``numbers`` each, of the host.

    Args:
        have: how many there are: so many more, four at first, or as many as 64 MiB hold.
        numbers: of one task.
        dtype: of them.
        offload: "cpu": memory; "disk": a file that has no name, and so ends with the process, in the folder of
            temporary files (``TMPDIR``), of which the system keeps in memory what it has room for.
        pinned: page-locked, so that a GPU reads it while it computes.

    Raises:
        OSError: if the disk has no room; nothing has been taken then.
    """
    size = numbers * dtype.itemsize
    count = max(1, min(max(have, 4), _CHUNK // size))
    if offload == "disk":
        return list(_mapped(count * numbers, dtype).view(count, numbers).unbind())
    if pinned:
        # torch takes a power of two for what is page-locked: then it is for tasks, too.
        count = (1 << (count * size - 1).bit_length()) // size
    return list(torch.empty((count, numbers), dtype=dtype, device="cpu", pin_memory=pinned).unbind())


def _mapped(numbers: int, dtype: torch.dtype) -> Tensor:
    folder = tempfile.gettempdir()
    size = numbers * dtype.itemsize
    with tempfile.NamedTemporaryFile(prefix="flexkern-", dir=folder) as file:
        try:
            # Now: a page that the disk has no room for would end the process when it is written.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            said = f"no room for {size:,} bytes of adapters; set TMPDIR to a folder of a larger disk"
            raise OSError(error.errno, said, folder) from error
        return torch.from_file(file.name, shared=True, size=numbers, dtype=dtype)
