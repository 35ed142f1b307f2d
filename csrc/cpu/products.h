// Products by the library whose bits do not depend on the number of threads. What the library adds up in which
// order depends on how many threads it shares a product out to, and on the shape it is given (MKL: also float32
// products as small as 5 x 7 by 7 x 37). So it is given fixed parts of a product, one thread for each of them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace flexkern::cpu {

// body(i) for i in [0, count), on torch's threads; inside, the library works on one thread. It does so in a
// parallel region only, and torch opens none for a single part: that one gets an idle neighbour.
template <class Body>
void for_each_product(int64_t count, const Body& body) {
  torch::stable::parallel_for(0, std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, count); ++i) body(i);
  });
}

// Whether a product of so many multiplications is left to the loops below: to call the library takes 1.5
// microseconds.
inline bool is_tiny(int64_t rows, int64_t columns, int64_t depth) { return rows * columns * depth <= 1024; }

// A matrix in somebody's memory, with its steps from one row and one column to the next, in elements.
struct Strided {
  const float* data;
  int64_t row, column;
};

// out [rows, columns] = alpha a b, out in rows of `out_row` elements; added up in one order, whatever the shape.
inline void tiny_product(float* out, int64_t out_row, int64_t rows, int64_t columns, int64_t depth,
                         const Strided& a, const Strided& b, float alpha = 1.0f) {
  for (int64_t i = 0; i < rows; ++i, out += out_row) {
    std::fill_n(out, columns, 0.0f);
    for (int64_t k = 0; k < depth; ++k) {
      const float factor = a.data[i * a.row + k * a.column];
      const float* values = b.data + k * b.row;
      if (b.column == 1) {
        for (int64_t j = 0; j < columns; ++j) out[j] += factor * values[j];
      } else {
        for (int64_t j = 0; j < columns; ++j) out[j] += factor * values[j * b.column];
      }
    }
    for (int64_t j = 0; j < columns; ++j) out[j] *= alpha;
  }
}

// The size of parts of `whole`, as equal as multiples of `multiple` allow: about `wanted` parts, not fewer than 1.
inline int64_t part_size(int64_t whole, int64_t wanted, int64_t multiple) {
  const int64_t parts = std::max<int64_t>(wanted, 1), size = (whole + parts - 1) / parts;
  return std::max((size + multiple - 1) / multiple * multiple, multiple);
}

}  // namespace flexkern::cpu
