// Procedural fields as tensors.
#include "device.h"
#include "flexkern/operators.h"

#ifdef FLEXKERN_FOR_CUDA
namespace flexkern::cuda {
const char* fill_field(const Source& source, float* out, int64_t numel, int device, void* stream);
}  // namespace flexkern::cuda
#else
FLEXKERN_KERNEL(void fill_field(const Source& source, float* out, int64_t begin, int64_t end);)
#endif

namespace flexkern::bindings {

namespace {

void fill(const Fill& given) {
  check_like(given.out, "out", given.out, ScalarType::Float);
  FLEXKERN_CHECK(given.source.size() == kSourceInts && given.parameters.size() == kSourceFloats, "a source is ",
                 kSourceInts, " integers and ", kSourceFloats, " numbers");
  const Source field = field_source(given.source.data(), given.parameters.data());
  float* out = data<float>(given.out);
#ifdef FLEXKERN_FOR_CUDA
  const Where at(given.out);
  check_launch(given.kName, cuda::fill_field(field, out, given.out.numel(), at.device, at.stream));
#else
  const auto kernel = FLEXKERN_BEST(fill_field);
  cpu::parallel_elements(given.out.numel(), [&](int64_t begin, int64_t end) { kernel(field, out, begin, end); });
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, FLEXKERN_DEVICE, m) { FLEXKERN_OPERATOR(m, fill_field_, fill); }

}  // namespace flexkern::bindings
