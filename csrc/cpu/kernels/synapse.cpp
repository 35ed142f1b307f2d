#include "flexkern/synapse.h"

#include <algorithm>

#include "chunk.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

namespace {

static_assert(kChunk % kWordBits == 0 && kWordBits % kLanes == 0);
constexpr uint32_t kAllLanes = kLanes == 32 ? ~0u : (1u << kLanes) - 1;

// One row's part of a chunk: its words, and what its coincidences come from.
struct SilentPart {
  uint32_t* words;
  const float* pre;          // null where there is a coincidence matrix
  const float* coincidence;  // the chunk's
  float* anchor;             // the chunk's, where insertion is Hebbian
  float factor;              // post of the row, or the scale of the matrix
  float theta;
};

FLEXKERN_FN floats coincidence(const SilentPart& d, int64_t i, int64_t count) {
  if (d.pre == nullptr && d.coincidence == nullptr) return splat<floats>(0.0f);
  if (d.pre == nullptr) return load_some(d.coincidence + i, count) * d.factor;
  return activity(load_some(d.pre + i, count)) * d.factor;
}

FLEXKERN_FN uint32_t lane_bits_at(const uint32_t* words, int64_t i) {
  return (words[i / kWordBits] >> (i % kWordBits)) & kAllLanes;
}

struct Counts {
  int32_t converted = 0, pruned = 0;
};

// Whether a synapse of an all-silent chunk could convert; decides from the activities alone, so that a silent chunk
// costs these and nothing else.
bool any_converts(const SilentPart& d, int64_t n) {
  int32s found = {};
  for_each_vector(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const int32s converts_now = coincidence(d, i, count) >= d.theta;
    found |= count == kLanes ? converts_now : converts_now & lanes_of((1u << count) - 1);
  });
  return any(found);
}

// A chunk with silent synapses, or with pruning.
template <Gate kGate, int kHas, class Rule>
Counts convert(const Chunk<Rule>& c, const SilentPart& d, const SynapseLayer<Rule>& layer, const Step<Rule>& step) {
  using States = const floats(&)[Rule::kStates];
  const float rate = gate_rate(step.scale);
  Counts counts;
  for_each_vector(c.count, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const uint32_t silent_bits = lane_bits_at(d.words, i);
    const int32s silent = lanes_of(silent_bits);
    step_vector<kGate, kHas>(
        c, i, count, step, rate,
        [&](floats w, States states, floats new_w, States new_states) __attribute__((always_inline)) {
          const floats zero = {};
          const floats product = coincidence(d, i, count);
          const floats anchor = load_some(c.a + i, count);
          const floats inserted = inserted_weight(product, anchor, layer);
          const int32s converted = silent & converts(product, inserted, d.theta);
          const int32s pruned = ~silent & prunes(w, new_w, layer.prune);
          w = silent ? (converted ? inserted : w) : (pruned ? zero : new_w);
          store_some(c.w + i, w, count);
          floats kept[Rule::kStates];
          FLEXKERN_UNROLL
          for (int k = 0; k < Rule::kStates; ++k)
            kept[k] = silent ? (converted ? zero : states[k]) : (pruned ? zero : new_states[k]);
          store_states<kHas>(c, i, count, kept);
          if (d.anchor != nullptr) store_some(d.anchor + i, converted ? inserted : anchor, count);
          const uint32_t in_range = count == kLanes ? kAllLanes : (1u << count) - 1;
          const uint32_t awake = lane_bits(converted) & in_range, asleep = lane_bits(pruned) & in_range;
          d.words[i / kWordBits] ^= (awake | asleep) << (i % kWordBits);
          counts.converted += __builtin_popcount(awake);
          counts.pruned += __builtin_popcount(asleep);
        });
  });
  return counts;
}

template <int kHas, class Rule>
auto convert_of_gate(Gate gate) {
  switch (gate) {
    case Gate::kFormula: return &convert<Gate::kFormula, kHas, Rule>;
    case Gate::kStored: return &convert<Gate::kStored, kHas, Rule>;
    case Gate::kStoredBFloat16: return &convert<Gate::kStoredBFloat16, kHas, Rule>;
    default: return &convert<Gate::kFree, kHas, Rule>;
  }
}

template <class Rule>
auto choose_convert(const StepTensor<Rule>& tensor) {
  decltype(&convert<Gate::kFree, 0, Rule>) chosen = nullptr;
  with_states<Rule>(states_of(tensor),
                    [&](auto set) { chosen = convert_of_gate<decltype(set)::value, Rule>(tensor.gate); });
  return chosen;
}

// As round_weight, of a chunk of which the synapses with a bit in `asleep` keep the weights that they have.
template <class Rule>
void round_awake(const StepTensor<Rule>& tensor, Dtype weight, int64_t begin, int64_t count,
                 const uint32_t* asleep) {
  if (weight == Dtype::kFloat32) return;
  uint16_t* const rounded = static_cast<uint16_t*>(tensor.weight) + begin;
  for_each_vector(count, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    const floats exact = load_some(tensor.master + begin + i, lanes);
    const uint16s now = weight == Dtype::kBFloat16 ? float_to_bfloat16(exact) : float_to_half(exact);
    const uint16s kept = narrow_words((uint32s)lanes_of(lane_bits_at(asleep, i)));
    store_words(rounded + i, (load_words(rounded + i, lanes) & kept) | (now & ~kept), lanes);
  });
}

enum class Silence { kNone, kSome, kAll };

// Of the synapses of n columns; bits past the last column are none of theirs, and stay as they are.
Silence silence(const uint32_t* words, int64_t n) {
  const int64_t whole = n / kWordBits;
  uint32_t any = 0, all = ~0u;
  for (int64_t k = 0; k < whole; ++k) {
    any |= words[k];
    all &= words[k];
  }
  if (n % kWordBits != 0) {
    const uint32_t padding = ~0u << (n % kWordBits);
    any |= words[whole] & ~padding;
    all &= words[whole] | padding;
  }
  return any == 0 ? Silence::kNone : all == ~0u ? Silence::kAll : Silence::kSome;
}

}  // namespace

template <class Rule>
void synapse(const SynapseLayer<Rule>& layer, const Step<Rule>& step, Dtype weight, Dtype grad, int64_t begin,
             int64_t end) {
  ChunkBuffers buffers;
  const FlushSubnormal flush;
  const StepTensor<Rule>& synapses = layer.synapses;
  const auto step_chunk = choose_step(synapses);
  const auto convert = choose_convert(synapses);
  const auto number = counted(step.rule, synapses.count);
  const int64_t words = words_in_row(layer.columns);
  for (int64_t row = begin; row < end; ++row) {
    Counts counts;
    for (int64_t column = 0; column < layer.columns; column += kChunk) {
      const int64_t count = layer.columns - column < kChunk ? layer.columns - column : kChunk;
      const int64_t i = row * layer.columns + column;
      const int64_t block_i = i - layer.first_row * layer.columns;
      SilentPart part{};
      Silence silent = Silence::kNone;
      if (layer.silent != nullptr) {
        part = {reinterpret_cast<uint32_t*>(layer.silent) + row * words + column / kWordBits,
                layer.pre == nullptr ? nullptr : layer.pre + column,
                layer.coincidence == nullptr ? nullptr : layer.coincidence + block_i,
                layer.anchor == nullptr ? nullptr : layer.anchor + i,
                layer.pre == nullptr ? layer.coincidence_scale : activity(layer.post[row]),
                layer.thetas == nullptr ? layer.threshold : layer.thetas[layer.one_theta ? 0 : row]};
        // The mask is a stream too thin for the hardware's prefetcher: ask for what comes four chunks later.
        __builtin_prefetch(part.words + 4 * kChunk / kWordBits);
        silent = silence(part.words, count);
      }
      const bool functional = silent == Silence::kNone && (layer.prune == 0 || layer.silent == nullptr);
      if (silent == Silence::kAll && !any_converts(part, count)) continue;
      if (functional) {
        take_written(synapses, weight, i, count);
        const Chunk<Rule> chunk(synapses, number, weight, grad, i, block_i, count, false, buffers);
        step_chunk(chunk, step);
        round_weight(synapses, weight, i, count);
        continue;
      }
      // What stays silent keeps its weight and its master, also where somebody wrote one of them.
      uint32_t asleep[kChunk / kWordBits];
      const int64_t row_part = words_in_row(count);
      std::copy_n(part.words, row_part, asleep);
      take_written(synapses, weight, i, count, [&](int64_t j) { return ~lanes_of(lane_bits_at(asleep, j)); });
      const Chunk<Rule> chunk(synapses, number, weight, grad, i, block_i, count, true, buffers);
      const Counts some = convert(chunk, part, layer, step);
      counts.converted += some.converted;
      counts.pruned += some.pruned;
      for (int64_t k = 0; k < row_part; ++k) asleep[k] &= part.words[k];
      round_awake(synapses, weight, i, count, asleep);
    }
    layer.converted[row] += counts.converted;
    layer.pruned[row] += counts.pruned;
  }
}

#define FLEXKERN_SYNAPSE(Rule) \
  template void synapse(const SynapseLayer<Rule>&, const Step<Rule>&, Dtype, Dtype, int64_t, int64_t);
FLEXKERN_RULES(FLEXKERN_SYNAPSE)

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
