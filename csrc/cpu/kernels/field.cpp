#include "field.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

// Counter vectors that go through Philox side by side: one alone waits for its multiplications.
constexpr int kSets = 2;
static_assert(kOverhang == kSets * 2 * kLanes);

// kLanes / 2 Philox counters per vector give 2 * kLanes values. In the words of counter i, lanes r0 and r1 share
// one 64-bit lane, r2 and r3 another, so that interleaving 64-bit lanes puts the values in order.
template <Kind kKind>
static void generate(const Source& source, uint64_t block, int64_t values, float* out) {
  // A loop of its own has the table's rows in registers: 0.9 of the time.
  constexpr bool kWordsFirst = kKind == Kind::kNormalTable;
  const auto value = [&](int32s word) __attribute__((always_inline)) {
    return field_value<floats>(word, kKind, source.p0, source.p1);
  };
  constexpr uint64_t kLow = 0xffffffffu;
  const PhiloxKeys<words> keys(source.seed);
  words lane;
  for (int i = 0; i < kLanes / 2; ++i) lane[i] = i;
  for (int64_t done = 0; done < values; done += kSets * 2 * kLanes, block += kSets * kLanes / 2) {
    words c[kSets][4];
    for (int i = 0; i < kSets; ++i) {
      const words counter = lane + (block + i * kLanes / 2);
      c[i][0] = counter;
      c[i][1] = counter >> 32;
      c[i][2] = words{} + source.stream;
      c[i][3] = words{} + source.purpose;
    }
    philox(c, keys);
    for (int i = 0; i < kSets; ++i) {
      const words a = (c[i][0] & kLow) | (c[i][1] << 32);
      const words b = (c[i][2] & kLow) | (c[i][3] << 32);
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
      float* const to = out + done + i * 2 * kLanes;
      store(to, kWordsFirst ? (floats)first : value((int32s)first));
      store(to + kLanes, kWordsFirst ? (floats)second : value((int32s)second));
    }
  }
  if (!kWordsFirst) return;
  for (int64_t i = 0; i < values; i += kLanes) store(out + i, value((int32s)load(out + i)));
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
#define FLEXKERN_CASE(name, python_name, number) \
  case Kind::name: generate<Kind::name>(source, index / 4, values, buffer); break;
    FLEXKERN_RANDOM_KINDS(FLEXKERN_CASE)
#undef FLEXKERN_CASE
    default: break;
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
