// The flexible update on NVIDIA GPUs. Bound by memory: 20 bytes a parameter when flexibility and anchor are
// stored, 12 when both are procedural. A thread has up to four 16-byte loads in flight, a multiprocessor 2048
// threads: several times the 23 KB that 4.3 TB/s and 700 ns of latency ask of each of 132.
#include "kernels.h"
#include "launch.cuh"
#include "step4.cuh"

namespace flexkern::cuda {

namespace {

// Tensors of one launch travel as kernel arguments: nothing to copy to the device, and a CUDA graph keeps them.
// CUDA 12.1 and newer take 32,764 bytes of arguments; the small table keeps launches of few tensors cheap.
template <int kCount>
struct Table {
  SgdTensor tensors[kCount];
  int64_t first_tile[kCount + 1];  // tiles of tensor i: first_tile[i] .. first_tile[i + 1] - 1
  int count;
};

constexpr int kSmallTable = 16;
constexpr int kMaxTensors = 200;
static_assert(sizeof(Table<kSmallTable>) + sizeof(SgdRule) <= 4096);
static_assert(sizeof(Table<kMaxTensors>) + sizeof(SgdRule) <= 32764);

// Steps four elements, or what there is of them, and stores them.
template <class W, class G>
__device__ __forceinline__ void step_tile(const SgdTensor& tensor, int64_t begin, const SgdRule& rule, float rate) {
  const int64_t left = tensor.numel - begin;
  const int count = left < kVector ? static_cast<int>(left) : kVector;
  const bool whole = tensor.aligned && count == kVector;
  step4<W, G>(tensor, begin, whole, count, rule, rate,
              [&](const float (&)[4], const float (&w)[4], const float (&m)[4]) {
                constexpr bool kHasMaster = !std::is_same_v<W, float>;
                float* exact = kHasMaster ? tensor.master : static_cast<float*>(tensor.weight);
                if (tensor.momentum != nullptr) store4(tensor.momentum + begin, whole, count, m);
                store4(exact + begin, whole, count, w);
                if (kHasMaster) store4(static_cast<W*>(tensor.weight) + begin, whole, count, w);
              });
}

template <class W, class G, int kCount>
__global__ void __launch_bounds__(kThreads) sgd_kernel(const __grid_constant__ Table<kCount> table, SgdRule rule) {
  if (rule.lr_pointer != nullptr) rule.lr = *rule.lr_pointer;
  if (rule.scale_pointer != nullptr) rule.scale = *rule.scale_pointer;
  const float rate = gate_rate(rule.scale);
  for (int64_t tile = blockIdx.x; tile < table.first_tile[table.count]; tile += gridDim.x) {
    int low = 0, high = table.count;  // the tensor that this tile belongs to
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (table.first_tile[middle] <= tile)
        low = middle;
      else
        high = middle;
    }
    const SgdTensor& tensor = table.tensors[low];
    const int64_t begin = (tile - table.first_tile[low]) * kTile + static_cast<int64_t>(threadIdx.x) * kVector;
    if (begin < tensor.numel) step_tile<W, G>(tensor, begin, rule, rate);
  }
}

template <class W, class G, int kCount>
const char* launch(const SgdTensor* tensors, int count, const SgdRule& rule, int device, cudaStream_t stream) {
  Table<kCount> table;
  table.count = 0;
  int64_t tiles = 0;
  for (int i = 0; i < count; ++i) {
    if (tensors[i].numel == 0) continue;
    table.tensors[table.count] = tensors[i];
    table.tensors[table.count].aligned = aligned(tensors[i]);
    table.first_tile[table.count++] = tiles;
    tiles += (tensors[i].numel + kTile - 1) / kTile;
  }
  table.first_tile[table.count] = tiles;
  if (tiles == 0) return nullptr;
  sgd_kernel<W, G, kCount><<<grid_size(tiles, device), kThreads, 0, stream>>>(table, rule);
  return launch_error();
}

template <class W, class G>
const char* launch_all(const SgdTensor* tensors, int count, const SgdRule& rule, int device, Stream stream) {
  const CurrentDevice current(device);
  if (current.error() != cudaSuccess) return cudaGetErrorString(current.error());
  const auto s = static_cast<cudaStream_t>(stream);
  for (int first = 0; first < count; first += kMaxTensors) {
    const int some = count - first < kMaxTensors ? count - first : kMaxTensors;
    const char* error = some <= kSmallTable ? launch<W, G, kSmallTable>(tensors + first, some, rule, device, s)
                                            : launch<W, G, kMaxTensors>(tensors + first, some, rule, device, s);
    if (error != nullptr) return error;
  }
  return nullptr;
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

const char* sgd(const SgdTensor* tensors, int count, const SgdRule& rule, Dtype weight, Dtype grad, int device,
                Stream stream) {
  const bool wide = grad == Dtype::kFloat32;
  switch (weight) {
    case Dtype::kFloat32: return launch_all<float, float>(tensors, count, rule, device, stream);
    case Dtype::kBFloat16:
      return wide ? launch_all<__nv_bfloat16, float>(tensors, count, rule, device, stream)
                  : launch_all<__nv_bfloat16, __nv_bfloat16>(tensors, count, rule, device, stream);
    default:
      return wide ? launch_all<__half, float>(tensors, count, rule, device, stream)
                  : launch_all<__half, __half>(tensors, count, rule, device, stream);
  }
}

const char* gate(const float* weight, const Source& anchor, const Source& flexibility, float scale,
                 const float* scale_pointer, float* alpha, int64_t numel, int device, Stream stream) {
  if (numel == 0) return nullptr;
  const CurrentDevice current(device);
  if (current.error() != cudaSuccess) return cudaGetErrorString(current.error());
  SgdTensor operands;
  operands.weight = alpha;
  operands.grad = weight;
  operands.anchor = anchor;
  operands.flexibility = flexibility;
  gate_kernel<<<grid_size((numel + kTile - 1) / kTile, device), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      weight, anchor, flexibility, scale, scale_pointer, alpha, numel, aligned(operands));
  return launch_error();
}

}  // namespace flexkern::cuda
