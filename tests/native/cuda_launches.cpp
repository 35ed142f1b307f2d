// What launches of CUDA kernels must keep, tried on the host: see test_cuda_launches.py. Ends with the number of
// the promise that is broken.
#undef __CUDACC__  // torch's headers would look for those of CUDA
#undef __CUDA_ARCH__
#include <cstdio>
#include <random>
#include <vector>

#include "bindings/device.h"
#include "cuda_runtime.h"
#include "flexkern/displacement.h"
#include "table.cuh"

namespace flexkern::cuda {
const char* null(const float* x, float factor, float* out, int64_t numel, int device, void* stream);
const char* pack_mask(const uint8_t* mask, int32_t* words, int64_t rows, int64_t columns, int device, void* stream);
const char* unpack_mask(const int32_t* words, uint8_t* mask, int64_t rows, int64_t columns, int device,
                        void* stream);
}  // namespace flexkern::cuda

extern "C" uint32_t cuda_on_host_contexts();

using namespace flexkern;

namespace {

#define PROMISE(number, holds)               \
  if (!(holds)) {                            \
    fprintf(stderr, "broken: %s\n", #holds); \
    return number;                           \
  }

// Of a process that has used GPU 1 only, and whose thread has no device yet: so CUDA's current one is 0.
int contexts() {
  float x[4] = {1, 2, 3, 4}, out[4];
  for (int i = 0; i < 2; ++i) {
    const bindings::Where at(1);
    PROMISE(1, cuda::null(x, 2.0f, out, 4, at.device, at.stream) == nullptr && out[3] == 8.0f);
  }
  PROMISE(2, cuda_on_host_contexts() == 0b10);
  {
    const bindings::Where outside(2);
    {
      const bindings::Where inside(1);
      cuda::null(x, 2.0f, out, 4, inside.device, inside.stream);
    }
    int now = -1;
    cudaGetDevice(&now);
    PROMISE(3, now == 2);  // which has a context: it is current again
  }
  PROMISE(4, cuda_on_host_contexts() == 0b110);
  return 0;
}

bool some_aligned(const DisplacedTensor& tensor) { return tensor.numel == 1; }

// The bytes of arguments that launches of so many tensors carry.
int tables() {
  constexpr int kMost = cuda::kMostTensors<DisplacedTensor, Displacement>;
  for (int count = 0; count <= 450; ++count) {
    std::vector<DisplacedTensor> tensors(count);
    for (int i = 0; i < count; ++i) tensors[i].numel = i % 3;  // every third is empty
    size_t bytes = 0;
    int launches = 0, seen = 0;
    const auto launch = [&](const auto& table, int64_t tiles) -> const char* {
      bytes += sizeof(table);
      ++launches;
      seen += table.count;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int i = table.tensor_of(tile);
        if (table.first_tile[i] > tile || table.first_tile[i + 1] <= tile) return "another tensor's tile";
      }
      return tiles == table.count ? nullptr : "each of these has a tile";
    };
    PROMISE(5, cuda::in_tables<Displacement>(tensors.data(), count, some_aligned, launch) == nullptr);
    PROMISE(6, seen == count - (count + 2) / 3);
    PROMISE(7, count > 16 || bytes <= 4096);
    PROMISE(8, count > 64 || bytes <= 12 << 10);
    PROMISE(9, launches <= (count + kMost - 1) / kMost);
  }
  return 0;
}

// Masks of all alignments in memory that ends where they end, and whose last words have bits past the last column.
int masks() {
  std::mt19937 random(1);
  for (const int64_t columns : {1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 47, 48, 64, 65, 96, 100, 257, 1030, 70001})
    for (const int64_t rows : {1, 2, 3, 7, 40})
      for (int offset = 0; offset < 17; ++offset) {
        if (columns > 5000 && (rows > 2 || offset > 3)) continue;
        const int64_t count = rows * columns, per_row = (columns + 31) / 32;
        std::vector<uint8_t> mask(count + offset, 255), back(count + offset, 77);
        std::vector<uint32_t> words(rows * per_row, 0x55555555u), expected(rows * per_row, 0);
        for (int64_t i = 0; i < count; ++i) {
          mask[offset + i] = random() % 2 ? random() & 255 : 0;
          expected[i / columns * per_row + i % columns / 32] |= uint32_t{mask[offset + i] != 0} << i % columns % 32;
        }
        auto* packed = reinterpret_cast<int32_t*>(words.data());
        PROMISE(10, cuda::pack_mask(mask.data() + offset, packed, rows, columns, 1, nullptr) == nullptr);
        PROMISE(11, words == expected);
        if (columns % 32 != 0)
          for (int64_t row = 0; row < rows; ++row) words[(row + 1) * per_row - 1] |= ~0u << columns % 32;
        PROMISE(12, cuda::unpack_mask(packed, back.data() + offset, rows, columns, 1, nullptr) == nullptr);
        for (int i = 0; i < offset; ++i) PROMISE(13, back[i] == 77);
        for (int64_t i = offset; i < count + offset; ++i) PROMISE(14, back[i] == (mask[i] != 0));
      }
  return 0;
}

}  // namespace

int main() {
  if (const int broken = contexts()) return broken;
  if (const int broken = tables()) return broken;
  return masks();
}
