// The template of an operator (docs/design.md, How to add): its formula, once for host and device.
#pragma once

#include "flexkern/lanes.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

template <class F>
FLEXKERN_FN F null_value(F x, float factor) {
  return x * factor;
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
