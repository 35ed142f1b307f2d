// Packed masks: one bit per synapse.
#include "layers.h"

#ifdef FLEXKERN_FOR_CUDA
namespace flexkern::cuda {
const char* pack_mask(const uint8_t* mask, int32_t* words, int64_t rows, int64_t columns, int device, void* stream);
const char* unpack_mask(const int32_t* words, uint8_t* mask, int64_t rows, int64_t columns, int device,
                        void* stream);
}  // namespace flexkern::cuda
#else
// Rows [begin, end) of a bool matrix and of its packed words.
FLEXKERN_KERNEL(void pack_mask(const uint8_t* mask, int32_t* words, int64_t columns, int64_t begin, int64_t end);
                void unpack_mask(const int32_t* words, uint8_t* mask, int64_t columns, int64_t begin, int64_t end);)
#endif

namespace flexkern::bindings {

namespace {

Tensor pack(const Pack& given) {
  const Tensor& mask = given.mask;
  FLEXKERN_CHECK(mask.dim() == 2 && mask.scalar_type() == ScalarType::Bool && mask.is_contiguous() &&
                     mask.device().type() == kDevice,
                 "mask must be a contiguous bool matrix ", kOnDevice);
  const int64_t rows = mask.size(0), columns = mask.size(1);
  Tensor words = new_tensor(mask, {rows, words_in_row(columns)}, ScalarType::Int);
  const uint8_t* in = data<uint8_t>(mask);
  int32_t* out = data<int32_t>(words);
#ifdef FLEXKERN_FOR_CUDA
  const Where at(mask);
  check_launch(given.kName, cuda::pack_mask(in, out, rows, columns, at.device, at.stream));
#else
  const auto kernel = FLEXKERN_BEST(pack_mask);
  torch::stable::parallel_for(0, rows, cpu::row_grain(columns),
                              [&](int64_t begin, int64_t end) { kernel(in, out, columns, begin, end); });
#endif
  return words;
}

Tensor unpack_words(const Unpack& given) {
  const int64_t rows = given.words.dim() == 2 ? given.words.size(0) : -1, columns = given.columns;
  check_words(given.words, rows, columns);
  Tensor mask = new_tensor(given.words, {rows, columns}, ScalarType::Bool);
  const int32_t* in = data<int32_t>(given.words);
  uint8_t* out = data<uint8_t>(mask);
#ifdef FLEXKERN_FOR_CUDA
  const Where at(given.words);
  check_launch(given.kName, cuda::unpack_mask(in, out, rows, columns, at.device, at.stream));
#else
  const auto kernel = FLEXKERN_BEST(unpack_mask);
  torch::stable::parallel_for(0, rows, cpu::row_grain(columns),
                              [&](int64_t begin, int64_t end) { kernel(in, out, columns, begin, end); });
#endif
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, FLEXKERN_DEVICE, m) {
  FLEXKERN_OPERATOR(m, pack_mask, pack);
  FLEXKERN_OPERATOR(m, unpack_mask, unpack_words);
}

}  // namespace flexkern::bindings
