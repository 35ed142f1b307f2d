"""A tile of the product that makes a gradient or a coincidence, left^T right over a batch, on tensor cores."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import torch
import triton
import triton.language as tl

from flexkern.triton_kernels.memory import to_float32, typed
from flexkern.triton_kernels.target import multiplies

__all__ = [
    "HALF",
    "IN",
    "INTERPRETED",
    "LARGEST",
    "UNIT",
    "arithmetic",
    "eighth_of",
    "eighths",
    "parts",
    "precision_of",
    "product",
]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
IN = tl.constexpr(128)  # columns of a tile: four words
# Rows and columns come in multiples of it where x and grad_out are read 16 bytes at once.
UNIT = tl.constexpr(8)
# 32-bit offsets inside a tile reach over 128 rows of the weight, or of x or grad_out.
LARGEST = 2**24


# A tile is OUT x 128 weights, a step BATCH samples of it; tiles go in groups of GROUP rows of tiles, so that
# what is read of x and grad_out stays in the L2 cache (with 8, 8 x 128 rows of grad_out and 132 / 8 tiles of x
# are in use at a time). tuning.toml has them by target and arithmetic; how they were chosen for Hopper:
#
# 16-bit inputs. A step of a 128 x 128 tile over 64 samples: 2.1 MFLOP, 0.28 us of a multiprocessor's
# tensor cores at 990 TFLOP/s / 132, and 32 KB from the L2 cache. A tile's state, stored and float32: 16 bytes x
# 16,384 = 262 KB, 8 us of its share of 4.3 TB/s. So a batch of 1024 (16 steps, 4.5 us) is half as long in the
# product as in the state, and the state can hide the product only if two programs are on a multiprocessor: 2 x
# 256 threads at 128 registers are its 65,536, and 2 x 96 KB (three steps in flight) fit its 227 KB. The
# compiled kernel has 115 registers (stored), 128 (procedural), 159 to 170 with silent synapses: those run one
# program at a time. A tile of 256 x 128 would read a quarter less from L2 (for batch 1024, in 9216, out 4096:
# 0.88 instead of 1.18 GB), but its 128 accumulators per thread leave room for one program.
# tf32: 32 samples per step have the same bytes, at half the rate. Hopper's float32 tensor instructions want
# both operands contiguous along the batch, and x and grad_out are contiguous along the units: Triton still
# uses wgmma, and transposes on the way to shared memory with 4-byte copies in place of 16-byte ones: 256 copy
# instructions of a warp for a step instead of 64, where the tensor cores need 490 cycles. At one per cycle they
# hide; with bank conflicts of four or more they set the pace, at 1000 cycles or more per step.
# ieee: no tensor cores; 1024 FFMA per thread for 16 samples. 67 TFLOP/s are a 7th of the peak of tf32, so the
# product sets the pace. With 64 rows, or 16 warps, the compiler did worse: a stack of up to 40 bytes, or slow.
HALF, TF32, IEEE = "half", "tf32", "ieee"


def precision_of(dtype: torch.dtype, architecture: str) -> str:
    """How float32 is multiplied: as torch would, which is "none" (its default, ieee), "ieee" or "tf32".

    And "ieee" on a GPU without tf32, which torch.set_float32_matmul_precision asks for but does not know of.
    """
    wanted = dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == TF32
    return TF32 if wanted and TF32 in multiplies(architecture) else IEEE


def arithmetic(dtype: torch.dtype, precision: str) -> str:
    """What a product of ``dtype`` computes in: 16 bits, tf32 or float32; the table's variants begin with it."""
    return precision if dtype is torch.float32 else HALF


@triton.jit
def _batch_pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = typed(address, DTYPE, False)
    if not INTERPRETED:  # nothing may come between a load and the tensor cores, which read shared memory
        pointer = address.to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def product(
    left,
    right,
    steps,
    batch,
    row,
    column,
    rows,
    columns,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,
    ALIGNED: tl.constexpr,
    OUT: tl.constexpr,
    BATCH: tl.constexpr,
):
    """float32 [OUT, IN]: a tile of left^T right, of left [batch, rows] and right [batch, columns]."""
    b = tl.arange(0, BATCH)[:, None]
    out_lane, in_lane = tl.arange(0, OUT)[None, :], tl.arange(0, IN)[None, :]
    # Offsets of 32 bits, which save registers: that is why the host limits the number of units.
    left_pointers = _batch_pointer(left, DTYPE, ALIGNED_ROWS) + row + (b * rows.to(tl.int32) + out_lane)
    right_pointers = _batch_pointer(right, DTYPE, ALIGNED) + column + (b * columns.to(tl.int32) + in_lane)
    left_exists = out_lane < rows - row
    right_exists = in_lane < columns - column
    total = tl.zeros((OUT, IN), tl.float32)
    for step in tl.range(0, steps):
        present = b < batch - step * BATCH
        a = tl.load(left_pointers, mask=present & left_exists, other=0)
        c = tl.load(right_pointers, mask=present & right_exists, other=0)
        if INTERPRETED:  # it multiplies the bits of bfloat16 as integers
            a, c = to_float32(a, DTYPE), to_float32(c, DTYPE)
        total = tl.dot(tl.trans(a), c, total, input_precision=PRECISION)
        left_pointers += BATCH * rows
        right_pointers += BATCH * columns
    return total


@triton.jit
def _halves(x):
    """The left and the right half of a matrix."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _quarters(x):
    """The four parts of a matrix that have a quarter of its columns each."""
    left, right = _halves(x)
    q0, q1 = _halves(left)
    q2, q3 = _halves(right)
    return q0, q1, q2, q3


@triton.jit
def _rows(x):
    """The first and the second eight of each sixteen rows of a matrix."""
    ROWS: tl.constexpr = x.shape[0] // 2
    first, second = tl.split(tl.permute(tl.reshape(x, (ROWS // 8, 2, 8, x.shape[1])), (0, 2, 3, 1)))
    return tl.reshape(first, (ROWS, x.shape[1])), tl.reshape(second, (ROWS, x.shape[1]))


@triton.jit
def parts(x):
    """The eight parts of a tile [OUT, 128]: [OUT // 2, 32], one word per row.

    They are cut where a thread's registers in the layout of the tensor cores can be cut, so nothing moves. The
    state of a part takes half of the registers that a part of all rows would.
    """
    q0, q1, q2, q3 = _quarters(x)
    p0, p1 = _rows(q0)
    p2, p3 = _rows(q1)
    p4, p5 = _rows(q2)
    p6, p7 = _rows(q3)
    return p0, p1, p2, p3, p4, p5, p6, p7


@triton.jit
def eighths(x):
    """The eight parts of a tile [OUT, 128] that have an eighth of its columns each, [OUT, 16]."""
    q0, q1, q2, q3 = _quarters(x)
    e0, e1 = _halves(q0)
    e2, e3 = _halves(q1)
    e4, e5 = _halves(q2)
    e6, e7 = _halves(q3)
    return e0, e1, e2, e3, e4, e5, e6, e7


@triton.jit
def eighth_of(x, part):
    """Part ``part`` of those of :func:`eighths`. By selection: of a loop in which the parts move up Triton does
    not ask for the next step's loads ahead of their turn."""
    e0, e1, e2, e3, e4, e5, e6, e7 = x
    odd = part % 2 != 0
    q0, q1, q2, q3 = tl.where(odd, e1, e0), tl.where(odd, e3, e2), tl.where(odd, e5, e4), tl.where(odd, e7, e6)
    second = part % 4 >= 2
    return tl.where(part >= 4, tl.where(second, q3, q2), tl.where(second, q1, q0))


# Of the variants that are compiled ahead of time: what is multiplied, and how.
PRODUCTS = {
    "bf16": (torch.bfloat16, IEEE),
    "fp16": (torch.float16, IEEE),
    "tf32": (torch.float32, TF32),
    "ieee": (torch.float32, IEEE),
}
