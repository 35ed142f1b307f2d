// Kernels with faults that the emulator, or the sanitizers on it, must find: tests/native/test_cuda_faults.py runs
// each in a process of its own.
#include <cstdio>

#include "cuda_runtime.h"

namespace faults {
namespace {

constexpr unsigned kWarp = 0xffffffffu;

// What each thread of the others is: the sum of a warp, and the block's threads in reverse order.
__global__ void sound(int* out, int count) {
  __shared__ int reversed[1024];
  int sum = 1;
  for (unsigned offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWarp, sum, offset);
  reversed[blockDim.x - 1 - threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  const int other = reversed[threadIdx.x];
  __syncthreads();  // before another block writes there
  const bool even = __ballot_sync(kWarp, threadIdx.x % 2 == 0) == 0x55555555u;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = even ? 100 * sum + other : -1;
}

__global__ void a_lane_leaves(int* out, int) {
  if (threadIdx.x == 37) return;
  out[threadIdx.x] = static_cast<int>(__ballot_sync(kWarp, true));
}

__global__ void a_lane_stays_away(int* out, int) {
  if (threadIdx.x % 32 < 20) out[threadIdx.x] = static_cast<int>(__ballot_sync(kWarp, true));
}

__global__ void lanes_do_different_things(int* out, int) {
  if (threadIdx.x < 48)
    out[threadIdx.x] = static_cast<int>(__ballot_sync(kWarp, true));
  else
    out[threadIdx.x] = __shfl_xor_sync(kWarp, 1, 1);
}

__global__ void lanes_shuffle_differently(int* out, int) {
  out[threadIdx.x] = __shfl_xor_sync(kWarp, 1, threadIdx.x < 16 ? 1 : 2);
}

__global__ void a_shuffle_from_beyond(int* out, int) { out[threadIdx.x] = __shfl_xor_sync(kWarp, 1, 32); }

__global__ void a_part_of_a_warp(int* out, int) {
  out[threadIdx.x] = static_cast<int>(__ballot_sync(0xffffu, true));
}

__global__ void loops_of_different_length(int* out, int) {
  for (unsigned i = 0; i <= threadIdx.x / 8; ++i) out[threadIdx.x] += static_cast<int>(__ballot_sync(kWarp, true));
}

__global__ void a_warp_does_not_reach_the_barrier(int* out, int) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void a_lane_does_not_reach_the_barrier(int* out, int) {
  if (threadIdx.x != 5) __syncthreads();
  out[threadIdx.x] = static_cast<int>(__ballot_sync(kWarp, true));
}

__global__ void a_store_past_the_end(int* out, int count) {
  out[threadIdx.x + (threadIdx.x == 63) * (count - 63)] = 1;
}

__global__ void a_read_before_the_start(int* out, int) {
  out[threadIdx.x] = out[static_cast<int>(threadIdx.x) - 1];
}

__global__ void an_overflow(int* out, int count) {
  out[threadIdx.x] = static_cast<int>(threadIdx.x) * (count << 24);
}

__global__ void an_index_that_is_not_aligned(int* out, int) {
  if (threadIdx.x == 0) reinterpret_cast<float4*>(out + 1)->x = 1.0f;
}

}  // namespace

// Launches the kernel of this name; whether the grid was taken. `out` has `count` elements.
bool run(const char* kernel, unsigned threads, int* out, int count) {
  const auto is = [kernel](const char* name) { return strcmp(kernel, name) == 0; };
  if (is("sound")) sound<<<2, threads, 0, nullptr>>>(out, count);
  if (is("a_lane_leaves")) a_lane_leaves<<<2, threads, 0, nullptr>>>(out, count);
  if (is("a_lane_stays_away")) a_lane_stays_away<<<2, threads, 0, nullptr>>>(out, count);
  if (is("lanes_do_different_things")) lanes_do_different_things<<<2, threads, 0, nullptr>>>(out, count);
  if (is("lanes_shuffle_differently")) lanes_shuffle_differently<<<2, threads, 0, nullptr>>>(out, count);
  if (is("a_shuffle_from_beyond")) a_shuffle_from_beyond<<<2, threads, 0, nullptr>>>(out, count);
  if (is("a_part_of_a_warp")) a_part_of_a_warp<<<2, threads, 0, nullptr>>>(out, count);
  if (is("loops_of_different_length")) loops_of_different_length<<<2, threads, 0, nullptr>>>(out, count);
  if (is("a_warp_does_not_reach_the_barrier"))
    a_warp_does_not_reach_the_barrier<<<2, threads, 0, nullptr>>>(out, count);
  if (is("a_lane_does_not_reach_the_barrier"))
    a_lane_does_not_reach_the_barrier<<<2, threads, 0, nullptr>>>(out, count);
  if (is("a_store_past_the_end")) a_store_past_the_end<<<2, threads, 0, nullptr>>>(out, count);
  if (is("a_read_before_the_start")) a_read_before_the_start<<<2, threads, 0, nullptr>>>(out, count);
  if (is("an_overflow")) an_overflow<<<2, threads, 0, nullptr>>>(out, count);
  if (is("an_index_that_is_not_aligned")) an_index_that_is_not_aligned<<<2, threads, 0, nullptr>>>(out, count);
  return cudaGetLastError() == cudaSuccess;
}

}  // namespace faults

// faults KERNEL [THREADS]: what the kernel has written, or 3 where its grid was refused.
int main(int argc, char** argv) {
  const unsigned threads = argc > 2 ? static_cast<unsigned>(atoi(argv[2])) : 64;
  constexpr int kCount = 128;
  int* out = static_cast<int*>(calloc(kCount, sizeof(int)));
  if (!faults::run(argv[1], threads, out, kCount)) return 3;
  for (int i = 0; i < kCount; ++i) printf("%d ", out[i]);
  free(out);
}
