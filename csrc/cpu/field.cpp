#include "field.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

// kLanes / 2 Philox counters at a time give 2 * kLanes values. In the words of counter i, lanes r0 and r1 share
// one 64-bit lane, r2 and r3 another, so that interleaving 64-bit lanes puts the values in order.
template <Kind kKind>
static void generate(const Source& source, uint64_t block, int64_t values, float* out) {
  words lane;
  for (int i = 0; i < kLanes / 2; ++i) lane[i] = i;
  for (int64_t done = 0; done < values; done += 2 * kLanes, block += kLanes / 2) {
    const words counter = lane + block;
    words c[4] = {counter, counter >> 32, words{} + source.stream, words{} + source.purpose};
    philox(c, source.seed);
    constexpr uint64_t kLow = 0xffffffffu;
    const words a = (c[0] & kLow) | (c[1] << 32);
    const words b = (c[2] & kLow) | (c[3] << 32);
#if defined(__AVX512F__)
    const words first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    const words second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(__AVX2__)
    const words first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const words second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#else
    const words first = __builtin_shufflevector(a, b, 0, 2);
    const words second = __builtin_shufflevector(a, b, 1, 3);
#endif
    store(out + done, field_value<floats>((int32s)first, kKind, source.p0, source.p1));
    store(out + done + kLanes, field_value<floats>((int32s)second, kKind, source.p0, source.p1));
  }
}

const float* field_values(const Source& source, int64_t begin, int64_t count, FieldBuffer& buffer) {
  if (source.kind == Kind::kConstant) {
    for (int64_t i = 0; i < count; ++i) buffer[i] = source.p0;
    return buffer;
  }
  const uint64_t index = source.offset + static_cast<uint64_t>(begin);
  const int64_t lead = static_cast<int64_t>(index % 4);  // a block of four may begin before the range
  const int64_t values = lead + count;
  switch (source.kind) {
    case Kind::kUniform: generate<Kind::kUniform>(source, index / 4, values, buffer); break;
    case Kind::kNormal: generate<Kind::kNormal>(source, index / 4, values, buffer); break;
    case Kind::kBiasedHigh: generate<Kind::kBiasedHigh>(source, index / 4, values, buffer); break;
    default: generate<Kind::kBiasedLow>(source, index / 4, values, buffer); break;
  }
  return buffer + lead;
}

void fill_field(const Source& source, float* out, int64_t begin, int64_t end) {
  alignas(64) FieldBuffer buffer;
  for (int64_t i = begin; i < end; i += kChunk) {
    const int64_t count = end - i < kChunk ? end - i : kChunk;
    memcpy(out + i, field_values(source, i, count, buffer), count * sizeof(float));
  }
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
