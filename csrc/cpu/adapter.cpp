#include "adapter.h"

#include "chunk.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

namespace {

// A block of at most kChunk elements that lie together: whole rows, or part of one that is longer.
struct Block {
  int64_t first;  // element of the matrix
  int64_t column;
  int64_t rows, columns;
  int64_t count() const { return rows * columns; }
};

template <class Body>
void for_each_block(int64_t rows, int64_t columns, Body body) {
  if (columns > kChunk) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; column += kChunk) {
        body(Block{row * columns + column, column, 1, columns - column < kChunk ? columns - column : kChunk});
      }
    }
    return;
  }
  const int64_t some = kChunk / columns;
  for (int64_t row = 0; row < rows; row += some) {
    body(Block{row * columns, 0, rows - row < some ? rows - row : some, columns});
  }
}

// body(element of the block, column of the matrix, count) over the vectors of each row.
template <class Body>
FLEXKERN_FN void for_each_in(const Block& block, Body body) {
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t start = row * block.columns;
    for_each_vector(block.columns, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      body(start + i, block.column + i, count);
    });
  }
}

using Buffer = float[kChunk];

// Elements [first, first + count) in float32: themselves, or a copy in `buffer`.
FLEXKERN_FN const float* wide(const void* data, Dtype dtype, int64_t first, int64_t count, Buffer& buffer) {
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(data) + first;
  widen(dtype, static_cast<const uint16_t*>(data) + first, buffer, count);
  return buffer;
}

FLEXKERN_FN float* wide(void* data, Dtype dtype, int64_t first, int64_t count, Buffer& buffer) {
  return const_cast<float*>(wide(const_cast<const void*>(data), dtype, first, count, buffer));
}

FLEXKERN_FN void write_back(void* data, Dtype dtype, int64_t first, int64_t count, const float* values) {
  if (dtype != Dtype::kFloat32) round(dtype, values, static_cast<uint16_t*>(data) + first, count);
}

// A bias in float32, for all rows: itself, or a copy.
class Bias {
 public:
  Bias(const void* data, Dtype dtype, int64_t columns) {
    if (dtype == Dtype::kFloat32) {
      values_ = static_cast<const float*>(data);
      return;
    }
    copy_ = new float[columns];
    widen(dtype, static_cast<const uint16_t*>(data), copy_, columns);
    values_ = copy_;
  }
  ~Bias() { delete[] copy_; }
  Bias(const Bias&) = delete;
  Bias& operator=(const Bias&) = delete;
  const float* operator+(int64_t column) const { return values_ + column; }

 private:
  float* copy_ = nullptr;
  const float* values_;
};

template <bool kDropout>
void hidden_pass(const AdapterHidden& pass, Dtype dtype) {
  alignas(64) Buffer copy;
  alignas(64) FieldBuffer field;
  const Bias bias(pass.bias, dtype, pass.columns);
  Source uniform;
  uniform.kind = Kind::kUniform;
  uniform.seed = pass.seed;
  uniform.purpose = kDropoutPurpose;
  uniform.set_parameters(0.0, 1.0);
  for_each_block(pass.rows, pass.columns, [&](const Block& block) {
    float* z = wide(pass.hidden, dtype, block.first, block.count(), copy);
    const float* draws = kDropout ? field_values(uniform, pass.first + block.first, block.count(), field) : nullptr;
    for_each_in(block, [&](int64_t i, int64_t column, int64_t count) __attribute__((always_inline)) {
      floats h = relu(load_some(z + i, count) + load_some(bias + column, count));
      if (kDropout) h = load_some(draws + i, count) >= pass.p ? h * pass.factor : splat<floats>(0.0f);
      store_some(z + i, h, count);
    });
    write_back(pass.hidden, dtype, block.first, block.count(), z);
  });
}

template <bool kResidual>
void out_pass(const AdapterOut& pass, Dtype dtype) {
  alignas(64) Buffer copy, residual_copy;
  const Bias bias(pass.bias, dtype, pass.columns);
  for_each_block(pass.rows, pass.columns, [&](const Block& block) {
    float* y = wide(pass.out, dtype, block.first, block.count(), copy);
    const float* residual =
        kResidual ? wide(pass.residual, dtype, block.first, block.count(), residual_copy) : nullptr;
    for_each_in(block, [&](int64_t i, int64_t column, int64_t count) __attribute__((always_inline)) {
      const floats skip = kResidual ? load_some(residual + i, count) : splat<floats>(0.0f);
      store_some(y + i, adapter_out(load_some(y + i, count), load_some(bias + column, count), skip, pass.scale),
                 count);
    });
    write_back(pass.out, dtype, block.first, block.count(), y);
  });
}

}  // namespace

void adapter_hidden(const AdapterHidden& pass, Dtype dtype) {
  pass.dropout ? hidden_pass<true>(pass, dtype) : hidden_pass<false>(pass, dtype);
}

void adapter_out(const AdapterOut& pass, Dtype dtype) {
  pass.residual != nullptr ? out_pass<true>(pass, dtype) : out_pass<false>(pass, dtype);
}

void adapter_grad(const AdapterGrad& pass, Dtype dtype) {
  alignas(64) Buffer copy, hidden_copy;
  for (int64_t first = 0; first < pass.numel; first += kChunk) {
    const int64_t some = pass.numel - first < kChunk ? pass.numel - first : kChunk;
    float* grad = wide(pass.grad, dtype, first, some, copy);
    const float* hidden = wide(pass.hidden, dtype, first, some, hidden_copy);
    for_each_vector(some, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      store_some(grad + i, adapter_grad(load_some(grad + i, count), load_some(hidden + i, count), pass.factor),
                 count);
    });
    write_back(pass.grad, dtype, first, some, grad);
  }
}

void column_sums(const void* matrix, Dtype dtype, int64_t rows, int64_t columns, float* sums) {
  alignas(64) Buffer copy;
  for (int64_t i = 0; i < columns; ++i) sums[i] = 0.0f;
  for_each_block(rows, columns, [&](const Block& block) {
    const float* values = wide(matrix, dtype, block.first, block.count(), copy);
    for_each_in(block, [&](int64_t i, int64_t column, int64_t count) __attribute__((always_inline)) {
      store_some(sums + column, load_some(sums + column, count) + load_some(values + i, count), count);
    });
  });
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
