#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace flexkern {

#define FLEXKERN_DECLARE(isa)         \
  namespace isa {                     \
  extern const cpu::Kernels kKernels; \
  }

FLEXKERN_DECLARE(baseline)
#ifdef FLEXKERN_X86
FLEXKERN_DECLARE(avx2)
FLEXKERN_DECLARE(avx512)
#endif

namespace cpu {

static const Kernels& choose() {
  const char* variable = std::getenv("FLEXKERN_ISA");
  const std::string wanted = variable == nullptr ? "" : variable;
#ifdef FLEXKERN_X86
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && (wanted.empty() || wanted == "avx512")) return avx512::kKernels;
  if (avx2 && (wanted.empty() || wanted == "avx2")) return avx2::kKernels;
#endif
  if (wanted.empty() || wanted == "baseline") return baseline::kKernels;
  throw std::runtime_error("FLEXKERN_ISA=" + wanted +
                           " is not an instruction set that this build and this processor both have; "
                           "unset it, or take avx512, avx2 or baseline");
}

const Kernels& kernels() {
  static const Kernels& table = choose();
  return table;
}

}  // namespace cpu
}  // namespace flexkern
