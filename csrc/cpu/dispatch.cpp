#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace flexkern::cpu {

static InstructionSet choose() {
  const char* variable = std::getenv("FLEXKERN_ISA");
  const std::string wanted = variable == nullptr ? "" : variable;
#ifdef FLEXKERN_X86
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && (wanted.empty() || wanted == "avx512")) return InstructionSet::kAvx512;
  if (avx2 && (wanted.empty() || wanted == "avx2")) return InstructionSet::kAvx2;
#endif
  if (wanted.empty() || wanted == "baseline") return InstructionSet::kBaseline;
  throw std::runtime_error("FLEXKERN_ISA=" + wanted +
                           " is not an instruction set that this build and this processor both have; "
                           "unset it, or take avx512, avx2 or baseline");
}

InstructionSet instruction_set() {
  static const InstructionSet set = choose();
  return set;
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512: return "avx512";
    case InstructionSet::kAvx2: return "avx2";
    default: return "baseline";
  }
}

}  // namespace flexkern::cpu
