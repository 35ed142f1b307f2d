"""What ``scripts/tune.py`` races: configurations of kernels that are worth a try, by predicted gain.

Each compiles for sm_90 without spills (tests/triton/test_tuning.py); the table's own entry always takes part.
"""

from __future__ import annotations

__all__ = ["CANDIDATES", "candidates"]


def _linear(out: int, batch: int, warps: int, stages: int, group: int = 8, **bound: int) -> dict[str, int]:
    return {"out": out, "batch": batch, "group": group, "num_warps": warps, "num_stages": stages, **bound}


def _pass(rows: int, step: int, warps: int, stages: int, **bound: int) -> dict[str, int]:
    return {"rows": rows, "step": step, "num_warps": warps, "num_stages": stages, **bound}


def _bank(rows: int, columns: int, programs: int, warps: int, stages: int, **bound: int) -> dict[str, int]:
    return {
        "rows": rows, "columns": columns, "programs": programs, "num_warps": warps, "num_stages": stages,
        **bound,
    }  # fmt: skip


# Half a tile and twice the programs hide latency; a double one has less to look up and more in flight a thread.
_STEP = [
    {"tile": tile, "num_warps": warps} for tile, warps in ((512, 4), (1024, 8), (2048, 4), (2048, 8), (4096, 8))
]
_SYNAPSES = [{"words": words, "num_warps": warps} for words, warps in ((16, 4), (32, 8), (64, 4), (64, 8))]

CANDIDATES: dict[tuple[str, str], list[dict[str, int]]] = {
    ("linear", "half"): [
        _linear(128, 64, 8, 4),  # three steps under way, one program a multiprocessor
        _linear(128, 32, 8, 5),  # shorter steps, more of them
        _linear(256, 64, 16, 3),  # a quarter less traffic from L2, one program
        # Triton 3.6 takes 181 registers where fields are procedural; told to, it keeps to 128 without a spill.
        _linear(128, 64, 8, 3, maxnreg=128),
        _linear(128, 64, 8, 3, group=4),
        _linear(128, 64, 8, 3, group=16),
    ],
    ("linear", "half-silent"): [
        _linear(128, 64, 8, 3, maxnreg=128),  # two programs; 8 bytes of stack with the rate rule
        _linear(128, 64, 8, 4), _linear(128, 32, 8, 4), _linear(128, 64, 8, 3, group=16),
    ],
    ("linear", "tf32"): [
        _linear(128, 16, 8, 4),  # 128 registers also with procedural fields, so two programs
        _linear(128, 32, 8, 4),
        _linear(128, 32, 8, 2),
        _linear(128, 32, 8, 3, group=16),
    ],
    ("adapter forward", "half-64"): [
        _pass(128, 64, 8, 4, maxnreg=128),  # another step under way
        _pass(64, 64, 4, 3),  # smaller programs, more of them
        _pass(64, 64, 4, 4),
        _pass(128, 32, 8, 5, maxnreg=128),
        _pass(128, 64, 8, 3),  # without the bound: one program where dropout takes more registers
    ],
    ("adapter backward", "half-64"): [
        _pass(128, 64, 8, 4, maxnreg=128), _pass(64, 64, 4, 3), _pass(64, 64, 4, 4),
        _pass(128, 64, 8, 2, maxnreg=128),
    ],
    ("adapter bank", "half-64"): [
        _bank(64, 128, 384, 8, 5, maxnreg=128), _bank(64, 128, 768, 8, 5, maxnreg=128),
        _bank(64, 128, 512, 8, 5), _bank(64, 256, 512, 8, 4), _bank(32, 128, 512, 8, 6),
        _bank(64, 64, 768, 4, 5),
    ],
    ("sgd", "stored"): _STEP,
    ("sgd", "mixed"): _STEP,
    ("sgd", "held"): _STEP,
    ("gate", "stored"): _STEP,
    ("fill", "any"): _STEP,
    ("synapse", "stored"): _SYNAPSES,
    ("synapse", "mixed"): _SYNAPSES,
}  # fmt: skip


def candidates(kernel: str, variant: str, current: dict[str, int]) -> list[dict[str, int]]:
    """What to race, the present configuration first."""
    return [current, *(c for c in CANDIDATES[kernel, variant] if c != current)]
