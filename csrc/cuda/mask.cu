#include "flexkern/synapse.h"
#include "launch.cuh"

namespace flexkern::cuda {

namespace {

// A warp makes one word at a time: lane j reads column 32 k + j, and the ballot of the lanes is the word.
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const uint8_t* mask, int32_t* words, int64_t columns, int64_t per_row, int64_t total) {
  const int lane = threadIdx.x % kWordBits;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWordBits);
  for (int64_t word = static_cast<int64_t>(blockIdx.x) * (kThreads / kWordBits) + threadIdx.x / kWordBits;
       word < total; word += warps) {
    const int64_t row = word / per_row;
    const int64_t column = (word % per_row) * kWordBits + lane;
    const bool bit = column < columns && mask[row * columns + column] != 0;
    const unsigned ballot = __ballot_sync(0xffffffffu, bit);
    if (lane == 0) words[word] = static_cast<int32_t>(ballot);
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const int32_t* words, uint8_t* mask, int64_t columns, int64_t per_row, int64_t total) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += stride) {
    const int64_t row = i / columns;
    const int64_t column = i % columns;
    const uint32_t word = static_cast<uint32_t>(words[row * per_row + column / kWordBits]);
    mask[i] = (word >> (column % kWordBits)) & 1u;
  }
}

}  // namespace

const char* pack_mask(const uint8_t* mask, int32_t* words, int64_t rows, int64_t columns, int device,
                      Stream stream) {
  const int64_t per_row = words_in_row(columns);
  const int64_t total = rows * per_row;
  if (total == 0) return nullptr;
  const CurrentDevice current(device);
  if (current.error() != cudaSuccess) return cudaGetErrorString(current.error());
  constexpr int64_t kWarps = kThreads / kWordBits;
  pack_kernel<<<grid_size((total + kWarps - 1) / kWarps, device), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      mask, words, columns, per_row, total);
  return launch_error();
}

const char* unpack_mask(const int32_t* words, uint8_t* mask, int64_t rows, int64_t columns, int device,
                        Stream stream) {
  const int64_t total = rows * columns;
  if (total == 0) return nullptr;
  const CurrentDevice current(device);
  if (current.error() != cudaSuccess) return cudaGetErrorString(current.error());
  unpack_kernel<<<grid_size((total + kThreads - 1) / kThreads, device), kThreads, 0,
                  static_cast<cudaStream_t>(stream)>>>(words, mask, columns, words_in_row(columns), total);
  return launch_error();
}

}  // namespace flexkern::cuda
