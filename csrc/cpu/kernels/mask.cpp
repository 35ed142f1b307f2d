#include "flexkern/synapse.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

void pack_mask(const uint8_t* mask, int32_t* words, int64_t columns, int64_t begin, int64_t end) {
  const int64_t per_row = words_in_row(columns);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < per_row; ++k) {
      const uint8_t* bits = mask + row * columns + k * kWordBits;
      const int64_t count = columns - k * kWordBits < kWordBits ? columns - k * kWordBits : kWordBits;
      uint8_t padded[kWordBits] = {};
      memcpy(padded, bits, count);
      uint32_t word = 0;
      for (int64_t j = 0; j < kWordBits; ++j) word |= static_cast<uint32_t>(padded[j] != 0) << j;
      words[row * per_row + k] = static_cast<int32_t>(word);
    }
  }
}

void unpack_mask(const int32_t* words, uint8_t* mask, int64_t columns, int64_t begin, int64_t end) {
  const int64_t per_row = words_in_row(columns);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < per_row; ++k) {
      const uint32_t word = static_cast<uint32_t>(words[row * per_row + k]);
      const int64_t count = columns - k * kWordBits < kWordBits ? columns - k * kWordBits : kWordBits;
      uint8_t bits[kWordBits];
      for (int64_t j = 0; j < kWordBits; ++j) bits[j] = (word >> j) & 1u;
      memcpy(mask + row * columns + k * kWordBits, bits, count);
    }
  }
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
