#include "linear.h"

#include <sys/mman.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstdlib>
#include <memory>
#include <optional>

#include "products.h"

namespace flexkern::cpu {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

// Rows of the gradient that exist at a time. The library multiplies 1024 as fast as all of them, 16 MB of a layer
// of 4096; it packs its operands anew for each call, so that 256 rows at a time take 10 % more (batch 256, 4096 x
// 4096, and 1024, 3136 x 4096, on 2 cores). Very wide layers make do with fewer.
int64_t block_rows(int64_t rows, int64_t columns) {
  constexpr int64_t kMost = 1024, kFewest = 256, kElements = 8 << 20;
  return std::min(std::clamp(kElements / std::max<int64_t>(columns, 1), kFewest, kMost), rows);
}

// Memory for one block, kept for the thread's next call: what is freshly allocated the operating system clears,
// page by page, which took 16 % of the time. In huge pages where there are some, as it is gone through from end to
// end each time.
class Scratch {
 public:
  void* of(int64_t elements, int64_t element_size) {
    const int64_t needed = elements * element_size;
    if (needed > size_) {
      constexpr size_t kHugePage = 2 << 20;
      const size_t bytes = (needed + kHugePage - 1) / kHugePage * kHugePage;
      data_.reset(std::aligned_alloc(kHugePage, bytes));
      size_ = data_ == nullptr ? 0 : needed;
      STD_TORCH_CHECK(data_ != nullptr, "linear_step_: no memory for ", bytes, " bytes of the gradient");
      madvise(data_.get(), bytes, MADV_HUGEPAGE);  // only advice: what comes of it does not matter
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
  int64_t size_ = 0;  // bytes
};

// Whether a product of these operands is left to the library in bfloat16: where the processor has instructions for
// it (2.7 times as fast as float32 with AVX512-BF16, 6 times with AMX; without them slower than widening), and
// where it is large enough to gain by them. It is added up in float32, and then rounded once to bfloat16, as
// autograd's own gradient is; smaller ones are not rounded.
bool multiplies_bfloat16(const Tensor& x, int64_t rows) {
#ifdef FLEXKERN_X86
  constexpr int64_t kFewest = 1 << 22;
  static const bool has = instruction_set() == InstructionSet::kAvx512 && __builtin_cpu_supports("avx512bf16");
  return has && x.scalar_type() == ScalarType::BFloat16 && x.numel() * rows >= kFewest;
#else
  (void)x, (void)rows;
  return false;
#endif
}

int64_t element_size(ScalarType dtype) { return dtype == ScalarType::Float ? 4 : 2; }

Tensor widen(const Tensor& batch) {
  return batch.scalar_type() == ScalarType::Float ? batch : torch::stable::to(batch, ScalarType::Float);
}

// What units did: the part that is not negative.
Tensor activities(const Tensor& batch) {
  Tensor result = torch::stable::empty_like(batch);
  const float* in = static_cast<const float*>(batch.data_ptr());
  float* out = static_cast<float*>(result.data_ptr());
  parallel_elements(batch.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = activity(in[i]);
  });
  return result;
}

// A matrix in somebody's memory, which begins `first` elements on. (A view of a tensor goes through the dispatcher:
// 1 us.)
Tensor view(void* data, ScalarType dtype, int64_t first, int64_t rows, int64_t columns, int64_t row_stride,
            int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  void* const begin = static_cast<char*>(data) + first * element_size(dtype);
  return torch::stable::from_blob(begin, {sizes, 2}, {strides, 2}, {DeviceType::CPU, 0}, dtype);
}

// Rows [begin, end) of left^T right, which are contiguous [batch, ...], by the library; `out`, of their dtype,
// begins with row `first`. In parts that several threads can work on: as large as can be, because the library packs
// the operands of each anew, but small products are not worth handing over.
void product_rows(void* out, int64_t first, const Tensor& left, const Tensor& right, int64_t begin, int64_t end) {
  constexpr int64_t kMost = 8, kOperations = 1 << 21, kMultiple = 64;
  const int64_t count = end - begin, batch = left.size(0), rows = left.size(1), columns = right.size(1);
  const int64_t parts = std::min(count * columns * batch / kOperations, kMost);
  const int64_t width = part_size(columns, parts, kMultiple);
  const ScalarType dtype = left.scalar_type();
  if (dtype == ScalarType::Float && is_tiny(count, columns, batch)) {
    const auto *l = static_cast<const float*>(left.data_ptr()), *r = static_cast<const float*>(right.data_ptr());
    float* rows_out = static_cast<float*>(out) + (begin - first) * columns;
    tiny_product(rows_out, columns, count, columns, batch, {l + begin, 1, rows}, {r, columns, 1});
    return;
  }
  const Tensor some = view(left.data_ptr(), dtype, begin, count, batch, 1, rows);
  for_each_product((columns + width - 1) / width, [&](int64_t i) {
    const int64_t from = i * width, wide = std::min(width, columns - from);
    const Tensor block = view(out, dtype, (begin - first) * columns + from, count, wide, columns, 1);
    const Tensor part = view(right.data_ptr(), dtype, from, batch, wide, columns, 1);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(block.get(), some.get(), part.get()));
  });
}

template <class Rule>
bool any_silent(const SynapseLayer<Rule>& layer, int64_t begin, int64_t end) {
  if (layer.silent == nullptr) return false;
  const int64_t words = words_in_row(layer.columns);
  return std::any_of(layer.silent + begin * words, layer.silent + end * words, [](int32_t w) { return w != 0; });
}

// Coincidences of the rows [begin, end), a block, but only of the 128 at a time that have silent synapses.
template <class Rule>
void coincidence_rows(const SynapseLayer<Rule>& layer, float* out, const Tensor& post, const Tensor& pre,
                      int64_t begin, int64_t end) {
  constexpr int64_t kTile = 128;
  int64_t first = begin;  // of a run of such rows
  for (int64_t row = begin; row < end; row += kTile) {
    const int64_t next = std::min(row + kTile, end);
    const bool silent = any_silent(layer, row, next);
    const int64_t last = silent ? next : row;
    if (first < last && (!silent || next == end)) product_rows(out, begin, post, pre, first, last);
    if (!silent) first = next;
  }
}

}  // namespace

template <class Rule>
void linear(SynapseLayer<Rule>& layer, const Step<Rule>& step, Dtype weight, const Tensor& x,
            const Tensor& grad_out, const Tensor* post) {
  const NoGrad guard;
  const int64_t batch = x.size(0), height = block_rows(layer.rows, layer.columns);
  const bool narrow = multiplies_bfloat16(x, layer.rows);
  const Tensor inputs = narrow ? x : widen(x), errors = narrow ? grad_out : widen(grad_out);
  static thread_local Scratch grad_memory, coincidence_memory;
  void* const grad = grad_memory.of(height * layer.columns, element_size(inputs.scalar_type()));
  layer.synapses.grad = grad;
  std::optional<Tensor> pre, activity_after;
  float* coincidence = nullptr;
  if (post != nullptr && any_silent(layer, 0, layer.rows)) {
    // Always in float32: what is near a threshold must not be rounded over it.
    pre = activities(widen(x));
    activity_after = activities(widen(*post));
    coincidence = static_cast<float*>(coincidence_memory.of(height * layer.columns, sizeof(float)));
    layer.coincidence = coincidence;
    layer.coincidence_scale = 1.0f / static_cast<float>(batch);
  }
  for (int64_t row = 0; row < layer.rows; row += height) {
    const int64_t end = std::min(row + height, layer.rows);
    layer.first_row = row;
    product_rows(grad, row, errors, inputs, row, end);
    if (coincidence != nullptr) coincidence_rows(layer, coincidence, *activity_after, *pre, row, end);
    step_rows(layer, step, weight, narrow ? Dtype::kBFloat16 : Dtype::kFloat32, row, end);
  }
}

#define FLEXKERN_LINEAR(Rule) \
  template void linear(SynapseLayer<Rule>&, const Step<Rule>&, Dtype, const Tensor&, const Tensor&, const Tensor*);
FLEXKERN_RULES(FLEXKERN_LINEAR)

}  // namespace flexkern::cpu
