#include "flexkern/null.h"

#include "chunk.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

void null(const float* x, float factor, float* out, int64_t begin, int64_t end) {
  for_each_vector(end - begin, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    store_some(out + begin + i, null_value(load_some(x + begin + i, count), factor), count);
  });
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
