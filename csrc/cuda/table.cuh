// Many tensors in one launch. They travel as kernel arguments: nothing to copy to the device, and a CUDA graph
// keeps them.
#pragma once

#include "launch.cuh"

namespace flexkern::cuda {

template <class Tensor, int kCount>
struct Table {
  Tensor tensors[kCount];
  int64_t first_tile[kCount + 1];  // tiles of tensor i: first_tile[i] .. first_tile[i + 1] - 1
  int count;

  // Takes those that have elements, and finds out which are aligned; the number of all tiles.
  int64_t fill(const Tensor* given, int given_count, bool (*is_aligned)(const Tensor&)) {
    count = 0;
    int64_t tiles = 0;
    for (int i = 0; i < given_count; ++i) {
      if (given[i].numel == 0) continue;
      tensors[count] = given[i];
      tensors[count].aligned = is_aligned(given[i]);
      first_tile[count++] = tiles;
      tiles += (given[i].numel + kTile - 1) / kTile;
    }
    first_tile[count] = tiles;
    return tiles;
  }

  // The tensor that a tile belongs to.
  __device__ __forceinline__ int tensor_of(int64_t tile) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first_tile[middle] <= tile)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

// The driver copies all of a table at each launch, its empty places too, so there are three sizes: 3, 10 and 32 KB.
constexpr int kFewTensors = 16;
constexpr int kSomeTensors = 64;
// CUDA 12.1 and newer take 32,764 bytes of arguments: 200 tensors of a step with one state, 180 with three.
constexpr int kArgumentBytes = 32764;
template <class Tensor, class Numbers>
constexpr int kMostTensors =
    (kArgumentBytes - static_cast<int>(sizeof(Numbers)) - 24) / static_cast<int>(sizeof(Tensor) + 8) / 10 * 10;

template <int kCount, class Tensor, class Launch>
const char* in_table(const Tensor* tensors, int count, bool (*is_aligned)(const Tensor&), Launch launch) {
  Table<Tensor, kCount> table;
  const int64_t tiles = table.fill(tensors, count, is_aligned);
  return tiles == 0 ? nullptr : launch(table, tiles);
}

// Calls launch(table, tiles) with a table of the smallest size that holds the tensors, several times where there
// are more than the largest holds, and not where all are empty. `launch` returns nullptr or what went wrong.
template <class Numbers, class Tensor, class Launch>
const char* in_tables(const Tensor* tensors, int count, bool (*is_aligned)(const Tensor&), Launch launch) {
  constexpr int kMost = kMostTensors<Tensor, Numbers>;
  static_assert(sizeof(Table<Tensor, kFewTensors>) + sizeof(Numbers) <= 4096);  // what older drivers take
  static_assert(sizeof(Table<Tensor, kMost>) + sizeof(Numbers) <= kArgumentBytes);
  for (int first = 0; first < count; first += kMost) {
    const int some = count - first < kMost ? count - first : kMost;
    const char* error = some <= kFewTensors    ? in_table<kFewTensors>(tensors + first, some, is_aligned, launch)
                        : some <= kSomeTensors ? in_table<kSomeTensors>(tensors + first, some, is_aligned, launch)
                                               : in_table<kMost>(tensors + first, some, is_aligned, launch);
    if (error != nullptr) return error;
  }
  return nullptr;
}

}  // namespace flexkern::cuda
