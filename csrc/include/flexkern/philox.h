// Philox4x32-10, the counter-based generator of Salmon et al., SC'11, section 4.3.
#pragma once

#include "flexkern/constants.h"
#include "flexkern/lanes.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

constexpr int kPhiloxRounds = FLEXKERN_PHILOX_ROUNDS;

// The keys of the rounds: they depend on the seed alone, so a loop over counters makes them once.
template <class Word>
struct PhiloxKeys {
  Word k0[kPhiloxRounds], k1[kPhiloxRounds];

  FLEXKERN_FN explicit PhiloxKeys(uint64_t seed) {
    uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
    FLEXKERN_UNROLL
    for (int round = 0; round < kPhiloxRounds; ++round) {
      k0[round] = Word{} + low;
      k1[round] = Word{} + high;
      low += FLEXKERN_PHILOX_W0;
      high += FLEXKERN_PHILOX_W1;
    }
  }
};

// Four counter words become four random words; kSets of them at a time.
template <int kSets, class Word>
FLEXKERN_FN void philox(Word (&c)[kSets][4], const PhiloxKeys<Word>& keys) {
  FLEXKERN_UNROLL
  for (int round = 0; round < kPhiloxRounds; ++round) {
    FLEXKERN_UNROLL
    for (int i = 0; i < kSets; ++i) {
      Word high0, low0, high1, low1;
      multiply(c[i][0], FLEXKERN_PHILOX_M0, high0, low0);
      multiply(c[i][2], FLEXKERN_PHILOX_M1, high1, low1);
      c[i][0] = high1 ^ c[i][1] ^ keys.k0[round];
      c[i][1] = low1;
      c[i][2] = high0 ^ c[i][3] ^ keys.k1[round];
      c[i][3] = low0;
    }
  }
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
