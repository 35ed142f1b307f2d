// The kernel table of the instruction set that this file is compiled for.
#include "adapter.h"
#include "field.h"
#include "kernels.h"
#include "mask.h"
#include "metaplastic.h"
#include "synapse.h"

#define FLEXKERN_STRING_(x) #x
#define FLEXKERN_STRING(x) FLEXKERN_STRING_(x)

namespace flexkern {
inline namespace FLEXKERN_ISA {

extern const cpu::Kernels kKernels;
const cpu::Kernels kKernels = {
    FLEXKERN_STRING(FLEXKERN_ISA),
    sgd,
    gate,
    synapse,
    fill_field,
    pack_mask,
    unpack_mask,
    adapter_hidden,
    adapter_out,
    adapter_grad,
    column_sums,
    exp2_nonpositive,
};

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
