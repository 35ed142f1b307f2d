// Each kernel in cpu/kernels is compiled once for each instruction set, in a namespace of that name. Who calls one
// declares it with FLEXKERN_KERNEL, and takes the best one that this processor runs with FLEXKERN_BEST.
#pragma once

namespace flexkern::cpu {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The one in use: the widest of this processor, or the one that FLEXKERN_ISA names ("avx512", "avx2", "baseline").
// Read once, at the first call; throws std::runtime_error if it cannot run.
InstructionSet instruction_set();
const char* name_of(InstructionSet set);

}  // namespace flexkern::cpu

#ifdef FLEXKERN_X86
#define FLEXKERN_KERNEL(...)     \
  namespace flexkern::baseline { \
  __VA_ARGS__                    \
  }                              \
  namespace flexkern::avx2 {     \
  __VA_ARGS__                    \
  }                              \
  namespace flexkern::avx512 {   \
  __VA_ARGS__                    \
  }
#define FLEXKERN_BEST(name)                                                                             \
  (flexkern::cpu::instruction_set() == flexkern::cpu::InstructionSet::kAvx512 ? &flexkern::avx512::name \
   : flexkern::cpu::instruction_set() == flexkern::cpu::InstructionSet::kAvx2 ? &flexkern::avx2::name   \
                                                                              : &flexkern::baseline::name)
#else
#define FLEXKERN_KERNEL(...)     \
  namespace flexkern::baseline { \
  __VA_ARGS__                    \
  }
#define FLEXKERN_BEST(name) (flexkern::cpu::instruction_set(), &flexkern::baseline::name)
#endif
