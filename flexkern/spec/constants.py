"""Numbers that every language computes procedural fields with (docs/design.md, Procedural fields).

The C++ headers have them from here through build_tools/bindings.py.
"""

from __future__ import annotations

__all__ = [
    "NORMAL_CENTRE",
    "NORMAL_TAIL",
    "PHILOX_MULTIPLIERS",
    "PHILOX_ROUNDS",
    "PHILOX_WEYL",
    "SQRT_HALF_BITS",
]

# Philox4x32-10: multipliers and Weyl increments of Salmon et al., SC'11, section 4.3.
PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
SQRT_HALF_BITS = 0x3F3504F3  # float32 bits of sqrt(0.5), where the range of the logarithm's mantissa begins
# sqrt(2) erfinv(x) / x as a polynomial in t = w - 2.5 where w = -log(1 - x^2) < 5, and in t = sqrt(w) - 3
# beyond. Fitted at Chebyshev nodes to scipy.special.ndtri (least squares of the relative error), lowest
# power first; with float32 operations the error is at most 3.5e-7 of the value, and the quantile function
# stays monotone over all 2**23 inputs.
NORMAL_CENTRE = (
    2.1233136653900146, 0.34880268573760986, -0.00590812973678112, -0.001773041789419949,
    0.00030911510111764073, -6.207880232977914e-06, -4.981194706488168e-06, 4.851791004512052e-07,
    3.9583209598959e-08,
)  # fmt: skip
NORMAL_TAIL = (
    4.006434440612793, 1.416581153869629, 0.013353944756090641, -0.010778620839118958,
    0.008076466619968414, -0.0052047003991901875, 0.0020044303964823484, 0.00015645392704755068,
    -0.0003547525266185403,
)  # fmt: skip
