#include "adapter.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstring>
#include <vector>

#include "check.h"
#include "dispatch.h"
#include "kernels/half.h"
#include "products.h"
#include "work.h"

FLEXKERN_KERNEL(void adapter_hidden(const AdapterHidden& pass, Dtype dtype);
                void adapter_out(const AdapterOut& pass, Dtype dtype);
                void adapter_grad(const AdapterGrad& pass, Dtype dtype);
                void column_sums(const void* matrix, Dtype dtype, int64_t rows, int64_t columns, float* sums);)

namespace flexkern::cpu {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

// --------------------------------------------------------------------------- rows

// Rows of [samples * positions, ...] that go through the adapter of one task; -1: through none.
struct Rows {
  int64_t task, first, count;
  int64_t end() const { return first + count; }
};

template <class Index>
std::vector<Rows> find_runs(const Index* index, const AdapterSizes& sizes) {
  std::vector<Rows> runs;
  for (int64_t s = 0; s < sizes.samples; ++s) {
    const int64_t task = index[s];
    FLEXKERN_CHECK(task >= -1 && task < sizes.tasks, "index must be in [-1, ", sizes.tasks, "), got ", task,
                   " for sample ", s);
    if (runs.empty() || runs.back().task != task) runs.push_back({task, s * sizes.positions, 0});
    runs.back().count += sizes.positions;
  }
  return runs;
}

// One entry for each run of samples of one task.
std::vector<Rows> find_runs(const Tensor& index, const AdapterSizes& sizes) {
  return index.scalar_type() == ScalarType::Long ? find_runs(static_cast<const int64_t*>(index.data_ptr()), sizes)
                                                 : find_runs(static_cast<const int32_t*>(index.data_ptr()), sizes);
}

// Splits runs into what a thread works on at a time.
std::vector<Rows> split_runs(const std::vector<Rows>& runs, int64_t most) {
  std::vector<Rows> parts;
  for (const Rows& run : runs) {
    for (int64_t first = run.first; first < run.end(); first += most) {
      parts.push_back({run.task, first, std::min(most, run.end() - first)});
    }
  }
  return parts;
}

// How many rows a thread works on at a time: no more than stay in the cache of a core between a product and the
// pass over its result. The order of sums and the library's bits follow from it, so that it must not depend on how
// many threads there are. Two get work from 128 rows on and eight from 4096; more parts cost bfloat16, whose
// products take the library some time to start (6304 rows of 768 on one thread: 1.04 times the time of one
// part, 1.12 in sixteen).
int64_t rows_at_a_time(const Tensor& x, const AdapterSizes& sizes) {
  constexpr int64_t kBytes = 3 << 20, kFewest = 64, kMost = 8, kMultiple = 16;
  const int64_t rows = sizes.samples * sizes.positions;
  const int64_t fitting = kBytes / (sizes.d * static_cast<int64_t>(x.element_size()));
  const int64_t parts = std::max(std::min(rows / (8 * kFewest), kMost), std::min<int64_t>(rows / kFewest, 2));
  return std::max(std::min(fitting, part_size(rows, parts, kMultiple)), kFewest);
}

// --------------------------------------------------------------------------- matrices

// A matrix in somebody's memory.
struct Matrix {
  char* data;
  int64_t rows, columns;
  ScalarType type;
  int64_t element_size;
  int64_t stride;           // elements from one row in memory to the next
  bool transposed = false;  // in memory it is [columns, rows]

  Matrix t() const { return {data, columns, rows, type, element_size, stride, !transposed}; }
  void* row(int64_t i) const { return data + i * stride * element_size; }
  Matrix part(const Rows& some) const {
    return {static_cast<char*>(row(some.first)), some.count, columns, type, element_size, stride};
  }
  Matrix some_columns(int64_t first, int64_t count) const {
    return {data + first * element_size, rows, count, type, element_size, stride};
  }
  Strided strided() const {
    const auto* values = reinterpret_cast<const float*>(data);
    return {values, transposed ? 1 : stride, transposed ? stride : 1};
  }
  Tensor tensor() const {
    const int64_t sizes[] = {rows, columns};
    const int64_t strides[] = {transposed ? 1 : stride, transposed ? stride : 1};
    return torch::stable::from_blob(data, {sizes, 2}, {strides, 2}, {DeviceType::CPU, 0}, type);
  }
};

// All but the last dimension of a contiguous tensor are rows.
Matrix matrix(const Tensor& tensor) {
  const int64_t columns = tensor.size(tensor.dim() - 1);
  return {static_cast<char*>(tensor.data_ptr()),
          tensor.numel() / columns,
          columns,
          tensor.scalar_type(),
          static_cast<int64_t>(tensor.element_size()),
          columns};
}

// The matrix of one task in a bank [tasks, rows, columns].
Matrix of_task(const Tensor& bank, int64_t task) {
  Matrix all = matrix(bank);
  const int64_t rows = bank.size(1);
  return all.part({task, task * rows, rows});
}

// The row of one task in a bank [tasks, columns].
void* row_of_task(const Tensor& bank, int64_t task) { return matrix(bank).row(task); }

// out = alpha a b, by the library.
void product(const Matrix& out, const Matrix& a, const Matrix& b, double alpha = 1.0) {
  if (out.type == ScalarType::Float && is_tiny(out.rows, out.columns, a.columns)) {
    tiny_product(reinterpret_cast<float*>(out.data), out.stride, out.rows, out.columns, a.columns, a.strided(),
                 b.strided(), static_cast<float>(alpha));
    return;
  }
  const Tensor result = out.tensor(), left = a.tensor(), right = b.tensor();
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), 0.0, alpha));
}

void zero(const Matrix& m) { std::memset(m.data, 0, m.rows * m.columns * m.element_size); }

// Writes float32 values in `dtype`.
void narrow(Dtype dtype, const float* values, void* to, int64_t count) {
  if (dtype == Dtype::kFloat32) {
    std::memcpy(to, values, count * sizeof(float));
  } else {
    round(dtype, values, static_cast<uint16_t*>(to), count);
  }
}

template <class Body>
void for_each_part(const std::vector<Rows>& parts, const Body& body) {
  for_each_product(static_cast<int64_t>(parts.size()), [&](int64_t i) { body(parts[i], i); });
}

// The rows of one task: where they lie, or where they lie in several places, a copy that has them together.
class TaskRows {
 public:
  TaskRows(const Tensor& whole, const std::vector<Rows>& runs) : matrix_(matrix(whole)) {
    if (runs.size() == 1) {
      matrix_ = matrix_.part(runs[0]);
      return;
    }
    int64_t count = 0;
    for (const Rows& run : runs) count += run.count;
    copy_ = torch::stable::new_empty(whole, {count, matrix_.columns});
    const Matrix together = matrix(*copy_);
    int64_t row = 0;
    for (const Rows& run : runs) {
      const Matrix from = matrix_.part(run);
      std::memcpy(together.row(row), from.data, from.rows * from.columns * from.element_size);
      row += run.count;
    }
    matrix_ = together;
  }
  const Matrix& rows() const { return matrix_; }

 private:
  std::optional<Tensor> copy_;
  Matrix matrix_;
};

struct BankGrads {
  Tensor down, down_bias, up, up_bias;
};

// Sums over rows that were made part by part, [parts, r + d] of grad_z and of grad_out, become bias gradients.
void add_bias_grads(const BankGrads& grads, const std::vector<Rows>& parts, const std::vector<float>& sums,
                    const AdapterSizes& sizes, Dtype dtype, float scale) {
  const int64_t width = sizes.r + sizes.d;
  std::vector<float> totals(sizes.tasks * width);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].task < 0) continue;
    for (int64_t k = 0; k < width; ++k) totals[parts[i].task * width + k] += sums[i * width + k];
  }
  for (int64_t task = 0; task < sizes.tasks; ++task) {
    float* total = &totals[task * width];
    for (int64_t k = sizes.r; k < width; ++k) total[k] *= scale;
    narrow(dtype, total, row_of_task(grads.down_bias, task), sizes.r);
    narrow(dtype, total + sizes.r, row_of_task(grads.up_bias, task), sizes.d);
  }
}

// The gradients of a task's two matrices: products over all its rows, so that each sum is rounded once whatever the
// dtype. Several threads work on parts of the columns.
class TaskProducts {
 public:
  TaskProducts(const BankGrads& grads, int64_t task, const std::vector<Rows>& runs, const Tensor& x,
               const Tensor& grad_z, const Tensor& hidden, const Tensor& grad_out)
      : hidden_(hidden, runs),
        grad_out_(grad_out, runs),
        inputs_(x, runs),
        grad_z_(grad_z, runs),
        // As dz^T x, because the library takes twice as long for x^T dz (float32, 6304 rows, 768 x 64).
        down_t_(torch::stable::new_empty(x, {grad_z_.rows().columns, inputs_.rows().columns})),
        down_(of_task(grads.down, task)),
        up_(of_task(grads.up, task)) {}

  void make(int64_t first, int64_t count, double scale) const {
    product(up_.some_columns(first, count), hidden_.rows().t(), grad_out_.rows().some_columns(first, count), scale);
    product(matrix(down_t_).some_columns(first, count), grad_z_.rows().t(),
            inputs_.rows().some_columns(first, count));
  }

  void finish() const {
    Tensor down = down_.t().tensor();
    torch::stable::copy_(down, down_t_);
  }

 private:
  TaskRows hidden_, grad_out_, inputs_, grad_z_;
  Tensor down_t_;
  Matrix down_, up_;
};

void bank_products(const BankGrads& grads, const std::vector<Rows>& runs, const Tensor& x, const Tensor& grad_z,
                   const Tensor& hidden, const Tensor& grad_out, double scale, const AdapterSizes& sizes) {
  std::vector<std::vector<Rows>> by_task(sizes.tasks);
  for (const Rows& run : runs) {
    if (run.task >= 0 && run.count > 0) by_task[run.task].push_back(run);
  }
  std::vector<TaskProducts> tasks;
  for (int64_t task = 0; task < sizes.tasks; ++task) {
    if (!by_task[task].empty()) tasks.emplace_back(grads, task, by_task[task], x, grad_z, hidden, grad_out);
  }
  constexpr int64_t kColumns = 192, kMultiple = 64;
  const int64_t width = part_size(sizes.d, (sizes.d + kColumns - 1) / kColumns, kMultiple);
  const int64_t parts = (sizes.d + width - 1) / width;
  for_each_product(static_cast<int64_t>(tasks.size()) * parts, [&](int64_t i) {
    const int64_t first = i % parts * width;
    tasks[i / parts].make(first, std::min(width, sizes.d - first), scale);
  });
  for (const TaskProducts& task : tasks) task.finish();
}

}  // namespace

std::tuple<Tensor, Tensor> adapter_forward(const Tensor& x, const AdapterBank& bank, const Tensor& index,
                                           const std::optional<Tensor>& residual, const AdapterHidden& dropout,
                                           float scale, const AdapterSizes& sizes, Dtype dtype) {
  const std::vector<Rows> parts = split_runs(find_runs(index, sizes), rows_at_a_time(x, sizes));

  const Tensor out = new_tensor({sizes.samples, sizes.positions, sizes.d}, x.scalar_type());
  const Tensor hidden = new_tensor({sizes.samples, sizes.positions, sizes.r}, x.scalar_type());
  const Matrix inputs = matrix(x), units = matrix(hidden), results = matrix(out);
  const auto finish_hidden = FLEXKERN_BEST(adapter_hidden);
  const auto finish_out = FLEXKERN_BEST(adapter_out);
  for_each_part(parts, [&](const Rows& rows, int64_t) {
    const Matrix h = units.part(rows), y = results.part(rows);
    const void* skip = residual.has_value() ? matrix(*residual).row(rows.first) : nullptr;
    if (rows.task < 0) {
      zero(h);
      if (skip == nullptr) {
        zero(y);
      } else {
        std::memcpy(y.data, skip, y.rows * y.columns * y.element_size);
      }
      return;
    }
    product(h, inputs.part(rows), of_task(bank.down, rows.task));
    AdapterHidden closing = dropout;
    closing.hidden = h.data;
    closing.bias = row_of_task(bank.down_bias, rows.task);
    closing.rows = h.rows;
    closing.columns = h.columns;
    closing.first = rows.first * h.columns;
    finish_hidden(closing, dtype);
    product(y, h, of_task(bank.up, rows.task));
    finish_out({y.data, row_of_task(bank.up_bias, rows.task), skip, y.rows, y.columns, scale}, dtype);
  });
  return {out, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adapter_backward(const Tensor& grad_out, const Tensor& x,
                                                                    const Tensor& hidden, const Tensor& down,
                                                                    const Tensor& up, const Tensor& index,
                                                                    double scale, double dropout_p, bool need_x,
                                                                    bool need_bank, const AdapterSizes& sizes,
                                                                    Dtype dtype) {
  const std::vector<Rows> runs = find_runs(index, sizes);
  const std::vector<Rows> parts = split_runs(runs, rows_at_a_time(x, sizes));

  const Tensor grad_z = torch::stable::new_empty(x, {sizes.samples, sizes.positions, sizes.r});
  const Tensor grad_x = torch::stable::new_empty(
      x, need_x ? std::vector<int64_t>{sizes.samples, sizes.positions, sizes.d} : std::vector<int64_t>{0});
  const Matrix errors = matrix(grad_out), units = matrix(hidden), grad_units = matrix(grad_z);
  const auto finish_grad = FLEXKERN_BEST(adapter_grad);
  const auto add_columns = FLEXKERN_BEST(column_sums);
  const float factor = static_cast<float>(scale / (1.0 - dropout_p));
  const int64_t width = sizes.r + sizes.d;
  std::vector<float> sums(need_bank ? parts.size() * width : 0);
  for_each_part(parts, [&](const Rows& rows, int64_t i) {
    if (rows.task < 0) {
      if (need_x) zero(matrix(grad_x).part(rows));
      return;
    }
    const Matrix g = errors.part(rows), dz = grad_units.part(rows);
    product(dz, g, of_task(up, rows.task).t());
    finish_grad({dz.data, units.part(rows).data, dz.rows * dz.columns, factor}, dtype);
    if (need_x) product(matrix(grad_x).part(rows), dz, of_task(down, rows.task).t());
    if (need_bank) {
      add_columns(dz.data, dtype, dz.rows, dz.columns, &sums[i * width]);
      add_columns(g.data, dtype, g.rows, g.columns, &sums[i * width + sizes.r]);
    }
  });
  if (!need_bank) {
    const auto none = [&] { return torch::stable::new_empty(x, {0}); };
    return {grad_x, none(), none(), none(), none()};
  }
  const BankGrads grads{torch::stable::new_zeros(x, {sizes.tasks, sizes.d, sizes.r}),
                        torch::stable::new_zeros(x, {sizes.tasks, sizes.r}),
                        torch::stable::new_zeros(x, {sizes.tasks, sizes.r, sizes.d}),
                        torch::stable::new_zeros(x, {sizes.tasks, sizes.d})};
  add_bias_grads(grads, parts, sums, sizes, dtype, static_cast<float>(scale));
  bank_products(grads, runs, x, grad_z, hidden, grad_out, scale, sizes);
  return {grad_x, grads.down, grads.down_bias, grads.up, grads.up_bias};
}

}  // namespace flexkern::cpu
