"""The stream that these tests learn, and one thread for those that want it."""

from __future__ import annotations

import pytest

from flexkern.streams import Stream
from helpers.mlp_blobs import blobs


@pytest.fixture(scope="module")
def stream() -> Stream:
    return blobs(3)
