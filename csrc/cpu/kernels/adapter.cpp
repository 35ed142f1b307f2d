#include "flexkern/adapter.h"

#include <type_traits>

#include "element.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

namespace {

// body(element, column, count) over the vectors of each row of a matrix.
template <class Body>
FLEXKERN_FN void for_each_in_rows(int64_t rows, int64_t columns, Body body) {
  for (int64_t row = 0; row < rows; ++row) {
    for_each_vector(columns, [&](int64_t i, int64_t count)
                                 __attribute__((always_inline)) { body(row * columns + i, i, count); });
  }
}

template <Dtype kDtype>
void hidden_pass(const AdapterHidden& pass) {
  for_each_in_rows(pass.rows, pass.columns,
                   [&](int64_t i, int64_t column, int64_t count) __attribute__((always_inline)) {
                     const floats bias = read<kDtype>(pass.bias, column, count);
                     write<kDtype>(pass.hidden, i, relu(read<kDtype>(pass.hidden, i, count) + bias), count);
                   });
}

// The same with dropout, whose draws are made for as many rows as have a chunk of elements, or for a part of one.
template <Dtype kDtype>
void dropout_pass(const AdapterHidden& pass) {
  alignas(64) FieldBuffer buffer;
  Source uniform;
  uniform.kind = Kind::kUniform;
  uniform.seed = pass.seed;
  uniform.purpose = kDropoutPurpose;
  uniform.set_parameters(0.0, 1.0);
  const int64_t columns = pass.columns < kChunk ? pass.columns : kChunk;
  const int64_t rows = kChunk / columns;
  for (int64_t row = 0; row < pass.rows; row += rows) {
    for (int64_t column = 0; column < pass.columns; column += columns) {
      const int64_t height = pass.rows - row < rows ? pass.rows - row : rows;
      const int64_t width = pass.columns - column < columns ? pass.columns - column : columns;
      const int64_t first = row * pass.columns + column;
      const float* draws = field_values(uniform, pass.first + first, height * width, buffer);
      for_each_in_rows(height, width, [&](int64_t i, int64_t j, int64_t count) __attribute__((always_inline)) {
        const floats bias = read<kDtype>(pass.bias, column + j, count);
        const floats h = relu(read<kDtype>(pass.hidden, first + i, count) + bias) * pass.factor;
        const floats kept = load_some(draws + i, count) >= pass.p ? h : splat<floats>(0.0f);
        write<kDtype>(pass.hidden, first + i, kept, count);
      });
    }
  }
}

template <Dtype kDtype, bool kResidual>
void out_pass(const AdapterOut& pass) {
  for_each_in_rows(
      pass.rows, pass.columns, [&](int64_t i, int64_t column, int64_t count) __attribute__((always_inline)) {
        const floats bias = read<kDtype>(pass.bias, column, count);
        const floats skip = kResidual ? read<kDtype>(pass.residual, i, count) : splat<floats>(0.0f);
        write<kDtype>(pass.out, i, adapter_out(read<kDtype>(pass.out, i, count), bias, skip, pass.scale), count);
      });
}

template <Dtype kDtype>
void grad_pass(const AdapterGrad& pass) {
  for_each_vector(pass.numel, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const floats hidden = read<kDtype>(pass.hidden, i, count);
    write<kDtype>(pass.grad, i, adapter_grad(read<kDtype>(pass.grad, i, count), hidden, pass.factor), count);
  });
}

template <Dtype kDtype>
void sum_pass(const void* matrix, int64_t rows, int64_t columns, float* sums) {
  for_each_in_rows(rows, columns, [&](int64_t i, int64_t column, int64_t count) __attribute__((always_inline)) {
    store_some(sums + column, load_some(sums + column, count) + read<kDtype>(matrix, i, count), count);
  });
}

// Calls body with the dtype as a constant.
template <class Body>
FLEXKERN_FN void with_dtype(Dtype dtype, Body body) {
  switch (dtype) {
    case Dtype::kFloat32: return body(std::integral_constant<Dtype, Dtype::kFloat32>{});
    case Dtype::kBFloat16: return body(std::integral_constant<Dtype, Dtype::kBFloat16>{});
    case Dtype::kFloat16: return body(std::integral_constant<Dtype, Dtype::kFloat16>{});
  }
}

}  // namespace

void adapter_hidden(const AdapterHidden& pass, Dtype dtype) {
  with_dtype(dtype,
             [&](auto constant) { pass.dropout ? dropout_pass<constant()>(pass) : hidden_pass<constant()>(pass); });
}

void adapter_out(const AdapterOut& pass, Dtype dtype) {
  with_dtype(dtype, [&](auto constant) {
    pass.residual != nullptr ? out_pass<constant(), true>(pass) : out_pass<constant(), false>(pass);
  });
}

void adapter_grad(const AdapterGrad& pass, Dtype dtype) {
  with_dtype(dtype, [&](auto constant) { grad_pass<constant()>(pass); });
}

void column_sums(const void* matrix, Dtype dtype, int64_t rows, int64_t columns, float* sums) {
  with_dtype(dtype, [&](auto constant) { sum_pass<constant()>(matrix, rows, columns, sums); });
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
