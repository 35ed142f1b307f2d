// The scaled displacement on NVIDIA GPUs. Bound by memory: 20 bytes per parameter where anchor and flexibility are
// stored, 16 where alpha is, 12 where both are procedural.
#include <type_traits>

#include "flexkern/displacement.h"
#include "table.cuh"
#include "vector4.cuh"

namespace flexkern::cuda {

namespace {

template <int kCount>
using DisplacedTable = Table<DisplacedTensor, kCount>;

inline bool aligned(const DisplacedTensor& tensor) {
  const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  return (bits(tensor.weight) | bits(tensor.before) | bits(tensor.master) | bits(tensor.alpha) |
          bits(tensor.anchor.data) | bits(tensor.flexibility.data)) %
             16 ==
         0;
}

// Scales four elements, or what there is of them.
template <class W>
__device__ __forceinline__ void displace_tile(const DisplacedTensor& tensor, int64_t begin, bool skip_nonfinite,
                                              float rate) {
  constexpr bool kLow = !std::is_same_v<W, float>;
  const int64_t left = tensor.numel - begin;
  const int count = left < kVector ? static_cast<int>(left) : kVector;
  const bool whole = tensor.aligned && count == kVector;
  float w[4], w0[4], exact[4];
  float alpha[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  load4(static_cast<const W*>(tensor.weight) + begin, whole, count, w);
  load4(static_cast<const W*>(tensor.before) + begin, whole, count, w0);
  if (kLow) load4(tensor.master + begin, whole, count, exact);
#pragma unroll
  for (int i = 0; i < 4; ++i) exact[i] = kLow ? exact_before(exact[i], widen(narrow<W>(exact[i])), w0[i]) : w0[i];
  if (tensor.gate == Gate::kStored) {
    load4(static_cast<const float*>(tensor.alpha) + begin, whole, count, alpha);
  } else if (tensor.gate == Gate::kFormula) {
    float a[4], f[4];
    source4(tensor.anchor, begin, whole, count, a);
    source4(tensor.flexibility, begin, whole, count, f);
#pragma unroll
    for (int i = 0; i < 4; ++i) alpha[i] = flexkern::gate(exact[i], a[i], f[i], rate);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float moved = displaced(exact[i], w[i], w0[i], alpha[i]);
    const bool stays = skip_nonfinite && !is_finite(widen(narrow<W>(moved)));
    w[i] = stays ? w0[i] : moved;
    exact[i] = stays ? exact[i] : moved;
  }
  if (kLow) store4(tensor.master + begin, whole, count, exact);
  store4(static_cast<W*>(tensor.weight) + begin, whole, count, w);
}

template <class W, int kCount>
__global__ void __launch_bounds__(kThreads)
    displace_kernel(const __grid_constant__ DisplacedTable<kCount> table, Displacement call) {
  const float rate = gate_rate(call.scale_pointer != nullptr ? *call.scale_pointer : call.scale);
  for (int64_t tile = blockIdx.x; tile < table.first_tile[table.count]; tile += gridDim.x) {
    const int i = table.tensor_of(tile);
    const int64_t begin = (tile - table.first_tile[i]) * kTile + static_cast<int64_t>(threadIdx.x) * kVector;
    if (begin < table.tensors[i].numel) displace_tile<W>(table.tensors[i], begin, call.skip_nonfinite, rate);
  }
}

template <class W, int kCount>
const char* launch(const DisplacedTable<kCount>& table, int64_t tiles, const Displacement& call, int device,
                   Stream stream) {
  constexpr auto kernel = displace_kernel<W, kCount>;
  kernel<<<grid_size<kernel>(tiles, device), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(table, call);
  return launch_error();
}

template <class W>
const char* launch_all(const DisplacedTensor* tensors, int count, const Displacement& call, int device,
                       Stream stream) {
  if (const char* error = use_device(device)) return error;
  return in_tables<Displacement>(tensors, count, aligned, [&](const auto& table, int64_t tiles) {
    return launch<W>(table, tiles, call, device, stream);
  });
}

}  // namespace

// `count` tensors in one launch (in groups of kMostTensors where there are more).
const char* displace(const DisplacedTensor* tensors, int count, const Displacement& call, Dtype weight, int device,
                     Stream stream) {
  switch (weight) {
    case Dtype::kFloat32: return launch_all<float>(tensors, count, call, device, stream);
    case Dtype::kBFloat16: return launch_all<__nv_bfloat16>(tensors, count, call, device, stream);
    default: return launch_all<__half>(tensors, count, call, device, stream);
  }
}

}  // namespace flexkern::cuda
