// Philox4x32-10, the counter-based generator of Salmon et al., SC'11, section 4.3.
#pragma once

#include "flexkern/lanes.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

// Four counter words become four random words.
template <class Word>
FLEXKERN_FN void philox(Word (&c)[4], uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  FLEXKERN_UNROLL
  for (int round = 0; round < 10; ++round) {
    Word high0, low0, high1, low1;
    multiply(c[0], 0xD2511F53u, high0, low0);
    multiply(c[2], 0xCD9E8D57u, high1, low1);
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
