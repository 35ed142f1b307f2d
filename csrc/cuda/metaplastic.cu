// The flexible update on NVIDIA GPUs. Bound by memory: 20 bytes per parameter when flexibility and anchor are
// stored, 12 when both are procedural. A thread has up to four 16-byte loads in flight, a multiprocessor 1024
// threads at least: more than twice the 23 KB that 4.3 TB/s and 700 ns of latency ask of each of 132.
#include "step4.cuh"
#include "table.cuh"

namespace flexkern::cuda {

namespace {

template <class Rule, int kCount>
using StepTable = Table<StepTensor<Rule>, kCount>;

// Steps four elements, or what there is of them, and stores them.
template <class W, class G, class Rule>
__device__ __forceinline__ void step_tile(const StepTensor<Rule>& tensor, int64_t begin, const Step<Rule>& step,
                                          float rate) {
  const int64_t left = tensor.numel - begin;
  const int count = left < kVector ? static_cast<int>(left) : kVector;
  const bool whole = tensor.aligned && count == kVector;
  step4<W, G>(tensor, begin, whole, count, step, rate,
              [&](const float (&)[4], const float (&w)[4], const float (&states)[Rule::kStates][4]) {
                constexpr bool kHasMaster = !std::is_same_v<W, float>;
                float* exact = kHasMaster ? tensor.master : static_cast<float*>(tensor.weight);
#pragma unroll
                for (int k = 0; k < Rule::kStates; ++k)
                  if (tensor.states[k] != nullptr) store4(tensor.states[k] + begin, whole, count, states[k]);
                store4(exact + begin, whole, count, w);
                if (kHasMaster) store4(static_cast<W*>(tensor.weight) + begin, whole, count, w);
              });
}

template <class W, class G, class Rule, int kCount>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const __grid_constant__ StepTable<Rule, kCount> table, Step<Rule> step) {
  if (step.lr_pointer != nullptr) step.lr = *step.lr_pointer;
  if (step.scale_pointer != nullptr) step.scale = *step.scale_pointer;
  const float rate = gate_rate(step.scale);
  for (int64_t tile = blockIdx.x; tile < table.first_tile[table.count]; tile += gridDim.x) {
    const int i = table.tensor_of(tile);
    const StepTensor<Rule>& tensor = table.tensors[i];
    const int64_t begin = (tile - table.first_tile[i]) * kTile + static_cast<int64_t>(threadIdx.x) * kVector;
    if (begin < tensor.numel) step_tile<W, G>(tensor, begin, step, rate);
  }
}

template <class W, class G, class Rule, int kCount>
const char* launch(const StepTable<Rule, kCount>& table, int64_t tiles, const Step<Rule>& step, int device,
                   Stream stream) {
  constexpr auto kernel = step_kernel<W, G, Rule, kCount>;
  kernel<<<grid_size<kernel>(tiles, device), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(table, step);
  return launch_error();
}

template <class W, class G, class Rule>
const char* launch_all(const StepTensor<Rule>* tensors, int count, const Step<Rule>& step, int device,
                       Stream stream) {
  if (const char* error = use_device(device)) return error;
  return in_tables<Step<Rule>>(tensors, count, aligned<Rule>, [&](const auto& table, int64_t tiles) {
    return launch<W, G, Rule>(table, tiles, step, device, stream);
  });
}

__global__ void __launch_bounds__(kThreads)
    gate_kernel(const float* weight, Source anchor, Source flexibility, float scale, const float* scale_pointer,
                float* alpha, int64_t numel, bool is_aligned) {
  const float rate = gate_rate(scale_pointer != nullptr ? *scale_pointer : scale);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTile;
  for (int64_t begin = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector; begin < numel;
       begin += stride) {
    const int count = numel - begin < kVector ? static_cast<int>(numel - begin) : kVector;
    const bool whole = is_aligned && count == kVector;
    float w[4], a[4], f[4];
    load4(weight + begin, whole, count, w);
    source4(anchor, begin, whole, count, a);
    source4(flexibility, begin, whole, count, f);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = flexkern::gate(w[i], a[i], f[i], rate);
    store4(alpha + begin, whole, count, w);
  }
}

}  // namespace

// One step of `count` tensors in one launch (in groups of kMostTensors where there are more).
template <class Rule>
const char* step(const StepTensor<Rule>* tensors, int count, const Step<Rule>& step, Dtype weight, Dtype grad,
                 int device, Stream stream) {
  const bool wide = grad == Dtype::kFloat32;
  switch (weight) {
    case Dtype::kFloat32: return launch_all<float, float>(tensors, count, step, device, stream);
    case Dtype::kBFloat16:
      return wide ? launch_all<__nv_bfloat16, float>(tensors, count, step, device, stream)
                  : launch_all<__nv_bfloat16, __nv_bfloat16>(tensors, count, step, device, stream);
    default:
      return wide ? launch_all<__half, float>(tensors, count, step, device, stream)
                  : launch_all<__half, __half>(tensors, count, step, device, stream);
  }
}

#define FLEXKERN_STEP(Rule) \
  template const char* step(const StepTensor<Rule>*, int, const Step<Rule>&, Dtype, Dtype, int, Stream);
FLEXKERN_RULES(FLEXKERN_STEP)

// `scale_pointer`, where not null, is read on the device in place of `scale`.
const char* gate(const float* weight, const Source& anchor, const Source& flexibility, float scale,
                 const float* scale_pointer, float* alpha, int64_t numel, int device, Stream stream) {
  if (numel == 0) return nullptr;
  if (const char* error = use_device(device)) return error;
  const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const bool is_aligned = (bits(weight) | bits(alpha) | bits(anchor.data) | bits(flexibility.data)) % 16 == 0;
  gate_kernel<<<grid_size<gate_kernel>((numel + kTile - 1) / kTile, device), kThreads, 0,
                static_cast<cudaStream_t>(stream)>>>(weight, anchor, flexibility, scale, scale_pointer, alpha,
                                                     numel, is_aligned);
  return launch_error();
}

}  // namespace flexkern::cuda
