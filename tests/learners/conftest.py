"""The stream that these tests learn, and one thread for those that want it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from flexkern.streams import Stream
from helpers.mlp_blobs import blobs


@pytest.fixture(scope="module")
def stream() -> Stream:
    return blobs(3)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
