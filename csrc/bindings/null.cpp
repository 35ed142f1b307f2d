// The template of an operator (docs/design.md, How to add): checks, and the call of the device's kernel.
#include "device.h"
#include "flexkern/operators.h"

#ifdef FLEXKERN_FOR_CUDA
namespace flexkern::cuda {
const char* null(const float* x, float factor, float* out, int64_t numel, int device, void* stream);
}  // namespace flexkern::cuda
#else
FLEXKERN_KERNEL(void null(const float* x, float factor, float* out, int64_t begin, int64_t end);)
#endif

namespace flexkern::bindings {

namespace {

Tensor null_of(const Null& given) {
  check_like(given.x, "x", given.x, ScalarType::Float);
  given.check_numbers();
  const float factor = static_cast<float>(given.factor);
  const float* x = data<float>(given.x);
  const int64_t numel = given.x.numel();
#ifdef FLEXKERN_FOR_CUDA
  const Where at(given.x);
  Tensor result = torch::stable::empty_like(given.x);
  check_launch(given.kName, cuda::null(x, factor, data<float>(result), numel, at.device, at.stream));
#else
  Tensor result = cpu::new_tensor(given.x.sizes(), ScalarType::Float);
  float* out = data<float>(result);
  const auto kernel = FLEXKERN_BEST(null);
  cpu::parallel_elements(numel, [&](int64_t begin, int64_t end) { kernel(x, factor, out, begin, end); });
#endif
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, FLEXKERN_DEVICE, m) { FLEXKERN_OPERATOR(m, null, null_of); }

}  // namespace flexkern::bindings
