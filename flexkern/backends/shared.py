"""How much shared memory a Triton kernel's configuration takes, and the largest one that fits a GPU.

Counted from what the compiler allocates: operands of a product, as many steps of them as are under way, and
what crosses from one layout to another. A bound, and for most configurations the number itself;
tests/triton/test_shared.py holds it against what the compiler says.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["bytes_of", "fitting", "limit_of"]

KB = 1024
# Bytes that one program may have. It is a table because kernels are compiled for GPUs that are not here.
LIMITS = {
    **dict.fromkeys(("sm_80", "sm_87"), 163 * KB),
    **dict.fromkeys(("sm_86", "sm_89", "sm_120", "sm_121"), 99 * KB),
    **dict.fromkeys(("sm_90", "sm_100", "sm_103", "sm_110"), 227 * KB),
    "gfx950": 160 * KB,
}
LEAST_NVIDIA, LEAST_AMD = 99 * KB, 64 * KB  # of a GPU that is not in the table, and of most of AMD's
# Tensor cores that read operands from shared memory while they work: one step more is held.
READ_IN_PLACE = ("sm_90", "sm_100", "sm_103", "sm_110")
TENSOR_MEMORY = ("sm_100", "sm_103", "sm_110")
BARRIERS = 64  # bytes
ELEMENT = {"half": 2, "tf32": 4, "ieee": 4}
TILE_COLUMNS = 128  # of a tile of linear_step_
# What is made smaller where a configuration does not fit, in this order, and how small it may become. Fewer
# rows read the bank more often, from the L2 cache; fewer steps under way wait for memory.
SMALLER = {
    "adapter forward": (("rows", 16), ("num_stages", 2), ("step", 16)),
    "adapter backward": (("rows", 16), ("num_stages", 2), ("step", 16)),
    "adapter bank": (("rows", 16), ("num_stages", 2), ("columns", 16)),
    "linear": (("num_stages", 2), ("batch", 16)),
}


def limit_of(architecture: str) -> int:
    """Bytes of shared memory that one program may have on an architecture, "sm_90" or "gfx942"."""
    return LIMITS.get(architecture, LEAST_AMD if architecture.startswith("gfx") else LEAST_NVIDIA)


def bytes_of(kernel: str, variant: str, configuration: Mapping[str, int], architecture: str) -> int:
    """Bytes of shared memory that a kernel's variant takes, at most; 0 for kernels without products."""
    if kernel not in SMALLER or variant == "interpreter":
        return 0
    arithmetic, _, rest = variant.partition("-")
    c, element = configuration, ELEMENT[arithmetic]
    under_way = max(1, c["num_stages"] - 1)
    in_place = int(architecture in READ_IN_PLACE and arithmetic != "ieee")
    through_registers = architecture.startswith("gfx") and architecture != "gfx950"
    if kernel == "linear":
        operands = (under_way + in_place) * c["batch"] * (c["out"] + TILE_COLUMNS) * element
        sums = c["out"] * TILE_COLUMNS * 4 if architecture.startswith("gfx") else 0  # AMD's cross for the step
        state = 0
        if "state_stages" in c:  # parts of three arrays under way, and what is on its way out
            state = (3 * (c["state_stages"] - 1) + 1) * c["out"] * TILE_COLUMNS // 8 * 4
        return max(operands, sums, state) + (0 if through_registers else BARRIERS)
    rank = int(rest.removesuffix("-unaligned"))
    if kernel == "adapter bank":
        if not through_registers:  # numbers of rows are read two stages before the rows: half of the stages
            under_way = max(1, (c["num_stages"] - 1) // 2)
        operands = (under_way + in_place) * c["rows"] * (rank + c["columns"]) * element
        numbers = c["num_stages"] * c["rows"] * 4
        crossing = c["num_warps"] * 32 * (4 if through_registers else 16)  # sums of columns, by their threads
        return max(operands + numbers + crossing, rank * c["columns"] * 4)
    first = (under_way + in_place) * c["step"] * (c["rows"] + rank) * element
    hidden = c["rows"] * rank * element
    # A step of the second product: of the matrix, of the residual and the bias, and the result on its way out.
    beside = under_way if kernel == "adapter forward" else 0
    second = ((under_way + in_place) * rank + (beside + 1) * c["rows"] + beside) * c["step"] * element
    if through_registers:
        return max(first, hidden, second)  # the hidden units have crossed before the second begins
    if architecture in TENSOR_MEMORY:  # accumulators cross as float32
        second = max(second, c["rows"] * rank * 4)
    return max(first, hidden + second) + BARRIERS


def fitting(kernel: str, variant: str, configuration: dict[str, int], architecture: str) -> dict[str, int]:
    """The configuration, made smaller until it fits the architecture; itself where it does.

    The smallest there is, where nothing fits: then the launch says so.
    """
    if architecture == "interpreter":
        return configuration
    limit = limit_of(architecture)
    found = configuration
    while bytes_of(kernel, variant, found, architecture) > limit:
        name = next((name for name, least in SMALLER[kernel] if found[name] > least), None)
        if name is None:
            return found
        found = {**found, name: found[name] - 1 if name == "num_stages" else found[name] // 2}
    return found
