"""Before anything imports flexkern: where there is no GPU, Triton kernels run in Triton's interpreter.

Triton decides when a kernel is defined, so the variable has to be there first. One that is already set stays.

With several test processes (pytest -n) each keeps to one thread, as do the processes that its tests start:
else they would wait for each other. Tests of several threads ask for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _in_one_thread() -> Iterator[None]:
    """Small tensors only wait for a second thread, and a sum has other last bits on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


one_thread = pytest.fixture(_in_one_thread, name="one_thread")
one_thread_in_module = pytest.fixture(_in_one_thread, scope="module", name="one_thread_in_module")


@pytest.hookimpl(trylast=True)  # of the tests that are left by -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes each begins with its share of the slow tests.

    ``--dist worksteal`` gives each a run of neighbours, so that what a module prepares is prepared once, and
    later moves tests from the end of one's list to another's. A slow test must not be among the last.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    if workers == 1 or not slow:
        return
    others = [item for item in items if not item.get_closest_marker("slow")]
    slow = [item for worker in range(workers) for item in slow[worker::workers]]  # neighbours to different ones
    order: list[pytest.Item] = []
    for worker in range(workers):
        left = workers - worker
        share = (len(slow) + len(others)) // left
        begin = min(share, -(-len(slow) // left))
        order += slow[:begin] + others[: share - begin]
        slow, others = slow[begin:], others[share - begin :]
    items[:] = order
