// One pass over the synapses of a layer on NVIDIA GPUs. Eight neighbouring threads share a word of the silent
// mask: 32 synapses, four per thread. Bound by memory: a functional synapse moves what the flexible update moves, a
// silent one an eighth of a byte, as the activities that decide on it stay in the cache.
#include "flexkern/synapse.h"
#include "launch.cuh"
#include "step4.cuh"

namespace flexkern::cuda {

namespace {

constexpr int kGroup = kWordBits / kVector;  // threads that share a word
constexpr int kWords = kThreads / kGroup;    // words a block takes at a time
constexpr unsigned kWarp = 0xffffffffu;

// The sum over the eight threads of a group.
__device__ __forceinline__ int group_sum(int value) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kWarp, value, offset);
  return value;
}

__device__ __forceinline__ uint32_t group_or(uint32_t value) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) value |= __shfl_xor_sync(kWarp, value, offset);
  return value;
}

// Stores only the elements that a bit is set for, where that is not all of them.
template <class T>
__device__ __forceinline__ void store_some4(T* p, bool whole, uint32_t bits, const float (&v)[4]) {
  if (whole && bits == 0xfu) {
    store_whole(p, v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (bits >> i & 1u) p[i] = narrow<T>(v[i]);
  }
}

// Of four synapses, those that bits are set for.
struct Changes {
  uint32_t converted = 0, pruned = 0;
};

// Converts those of four silent synapses that are driven, and returns which.
template <class W, class Rule>
__device__ __forceinline__ uint32_t convert4(const SynapseLayer<Rule>& layer, int64_t row, int64_t column,
                                             uint32_t silent, bool whole, int count) {
  const StepTensor<Rule>& synapses = layer.synapses;
  const int64_t begin = row * layer.columns + column;
  const float theta = layer.thetas == nullptr ? layer.threshold : layer.thetas[layer.one_theta ? 0 : row];
  float coincidence[4];
  if (layer.pre != nullptr) {
    load4(layer.pre + column, whole, count, coincidence);
    const float post = activity(layer.post[row]);
#pragma unroll
    for (int i = 0; i < 4; ++i) coincidence[i] = activity(coincidence[i]) * post;
  } else {
    load4(layer.coincidence + begin, whole, count, coincidence);
#pragma unroll
    for (int i = 0; i < 4; ++i) coincidence[i] *= layer.coincidence_scale;
  }
  bool driven = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) driven |= (silent >> i & 1u) && coincidence[i] >= theta;
  uint32_t converted = 0;
  if (driven) {
    float w[4], a[4] = {};
    if (layer.anchor == nullptr) source4(synapses.anchor, begin, whole, count, a);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = inserted_weight(coincidence[i], a[i], layer);
      if ((silent >> i & 1u) && converts(coincidence[i], w[i], theta)) converted |= 1u << i;
    }
    if (layer.anchor != nullptr) store_some4(layer.anchor + begin, whole, converted, w);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // one by one, as few convert
      if ((converted >> i & 1u) == 0) continue;
      if constexpr (!std::is_same_v<W, float>) synapses.master[begin + i] = w[i];
      static_cast<W*>(synapses.weight)[begin + i] = narrow<W>(w[i]);
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k)
        if (synapses.states[k] != nullptr) synapses.states[k][begin + i] = 0.0f;
    }
  }
  return converted;
}

// `silent` and `exists` have a bit for each of the four synapses from `column` on, which lie in one row.
template <class W, class G, class Rule>
__device__ __forceinline__ Changes pass4(const SynapseLayer<Rule>& layer, int64_t row, int64_t column,
                                         uint32_t silent, uint32_t exists, bool is_aligned, const Step<Rule>& step,
                                         float rate) {
  constexpr int kStates = Rule::kStates;
  const int64_t begin = row * layer.columns + column;
  const int count = __popc(exists);
  const bool whole = is_aligned && count == kVector;
  const uint32_t functional = exists & ~silent;
  Changes changes;
  // Asked for before the activities that decide on silent ones: those are a wait of their own.
  Operands4<W, G, Rule> operands;
  if (functional != 0) operands = load_operands4<W, G>(layer.synapses, begin, whole, count);
  if (silent != 0) changes.converted = convert4<W>(layer, row, column, silent, whole, count);
  if (functional != 0)
    step4(layer.synapses, operands, begin, step, rate,
          [&](const float (&old_w)[4], float (&new_w)[4], float (&states)[kStates][4]) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if ((functional >> i & 1u) == 0 || !prunes(old_w[i], new_w[i], layer.prune)) continue;
              changes.pruned |= 1u << i;
              new_w[i] = 0.0f;
#pragma unroll
              for (int k = 0; k < kStates; ++k) states[k][i] = 0.0f;
            }
            const StepTensor<Rule>& to = layer.synapses;
            if constexpr (!std::is_same_v<W, float>) store_some4(to.master + begin, whole, functional, new_w);
            store_some4(static_cast<W*>(to.weight) + begin, whole, functional, new_w);
#pragma unroll
            for (int k = 0; k < kStates; ++k)
              if (to.states[k] != nullptr) store_some4(to.states[k] + begin, whole, functional, states[k]);
          });
  return changes;
}

// Blocks for each multiprocessor. Four leave a thread 64 registers, which operands that wait for the silent ones do
// not fit. Three leave 80: 768 threads with 64 bytes each under way are 48 KB, for all but a fifth of the time,
// where 26 KB are enough. A rule of three states has 112 bytes a thread: 57 KB in the 512 threads of two blocks.
template <class Rule>
constexpr int kBlocks = Rule::kStates > 1 ? 2 : 3;

template <class W, class G, class Rule>
__global__ void __launch_bounds__(kThreads, kBlocks<Rule>)
    synapse_kernel(const __grid_constant__ SynapseLayer<Rule> layer, Step<Rule> step, bool is_aligned) {
  if (step.lr_pointer != nullptr) step.lr = *step.lr_pointer;
  if (step.scale_pointer != nullptr) step.scale = *step.scale_pointer;
  const float rate = gate_rate(step.scale);
  const int64_t row_words = words_in_row(layer.columns), total = layer.rows * row_words;
  const int lane = threadIdx.x % kGroup;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWords;
  const bool small = total <= UINT32_MAX;
  const auto word_at = [&](int64_t at) { return at < total ? static_cast<uint32_t>(layer.silent[at]) : 0u; };
  uint32_t next = word_at(static_cast<int64_t>(blockIdx.x) * kWords + threadIdx.x / kGroup);
  // All threads of a block go round equally often, as the groups' shuffles need.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kWords; first < total; first += stride) {
    const int64_t index = first + threadIdx.x / kGroup;
    const bool in_range = index < total;
    const uint32_t word = next;
    next = word_at(index + stride);  // while the synapses of this one are on their way
    // A division of 64 bits takes a hundred instructions, one of 32 a fifth.
    const int64_t row = small ? static_cast<uint32_t>(index) / static_cast<uint32_t>(row_words) : index / row_words;
    const int64_t column = (index - row * row_words) * kWordBits + lane * kVector;
    const int64_t left = in_range ? layer.columns - column : 0;
    const uint32_t exists = left >= kVector ? 0xfu : left > 0 ? (1u << left) - 1 : 0u;
    Changes changes;
    if (exists != 0) {
      const uint32_t silent = word >> (lane * kVector) & exists;
      changes = pass4<W, G>(layer, row, column, silent, exists, is_aligned, step, rate);
    }
    const uint32_t toggled = group_or((changes.converted | changes.pruned) << (lane * kVector));
    const int converted = group_sum(__popc(changes.converted));
    const int pruned = group_sum(__popc(changes.pruned));
    if (lane == 0 && toggled != 0) {
      layer.silent[index] = static_cast<int32_t>(word ^ toggled);
      // Sums of integers: the order does not matter.
      if (converted != 0) atomicAdd(layer.converted + row, converted);
      if (pruned != 0) atomicAdd(layer.pruned + row, pruned);
    }
  }
}

template <class W, class G, class Rule>
const char* launch(const SynapseLayer<Rule>& layer, const Step<Rule>& step, int device, Stream stream) {
  if (const char* error = use_device(device)) return error;
  const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const bool is_aligned = aligned(layer.synapses) && layer.columns % kVector == 0 &&
                          (bits(layer.pre) | bits(layer.coincidence) | bits(layer.anchor)) % 16 == 0;
  const int64_t tiles = (layer.rows * words_in_row(layer.columns) + kWords - 1) / kWords;
  constexpr auto kernel = synapse_kernel<W, G, Rule>;
  kernel<<<grid_size<kernel>(tiles, device), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(layer, step,
                                                                                               is_aligned);
  return launch_error();
}

}  // namespace

// The synapses of one layer; adds to layer.converted and layer.pruned.
template <class Rule>
const char* synapse(const SynapseLayer<Rule>& layer, const Step<Rule>& step, Dtype weight, Dtype grad, int device,
                    Stream stream) {
  if (layer.rows * layer.columns == 0) return nullptr;
  const bool wide = grad == Dtype::kFloat32;
  switch (weight) {
    case Dtype::kFloat32: return launch<float, float>(layer, step, device, stream);
    case Dtype::kBFloat16:
      return wide ? launch<__nv_bfloat16, float>(layer, step, device, stream)
                  : launch<__nv_bfloat16, __nv_bfloat16>(layer, step, device, stream);
    default:
      return wide ? launch<__half, float>(layer, step, device, stream)
                  : launch<__half, __half>(layer, step, device, stream);
  }
}

#define FLEXKERN_SYNAPSE(Rule) \
  template const char* synapse(const SynapseLayer<Rule>&, const Step<Rule>&, Dtype, Dtype, int, Stream);
FLEXKERN_RULES(FLEXKERN_SYNAPSE)

}  // namespace flexkern::cuda
