// One pass over the synapses of a layer, by each rule.
#include "layers.h"

#ifdef FLEXKERN_FOR_CUDA
namespace flexkern::cuda {
template <class Rule>
const char* synapse(const SynapseLayer<Rule>& layer, const Step<Rule>& step, Dtype weight, Dtype grad, int device,
                    void* stream);
}  // namespace flexkern::cuda
#else
#include "cpu/synapse.h"
#endif

namespace flexkern::bindings {

namespace {

template <class Given>
Tensor step(const Given& given) {
  FLEXKERN_CHECK(given.silent.has_value(), "silent is missing");
  auto call = decode_layer(given, given.grad);
  decode_activities(call.layer, given.weight, given.activities);
  given.check_dtypes();
  given.check_memory();
  Tensor counts = new_counts(call.layer, given.weight);
#ifdef FLEXKERN_FOR_CUDA
  const Where at(given.weight);
  check_launch(Given::kName, cuda::synapse(call.layer, call.step, call.weight, call.grad, at.device, at.stream));
#else
  cpu::step_rows(call.layer, call.step, call.weight, call.grad, 0, call.layer.rows);
#endif
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, FLEXKERN_DEVICE, m) {
#define FLEXKERN_STEP(Given, op) FLEXKERN_OPERATOR(m, op, step<Given>);
  FLEXKERN_SYNAPSE_STEPS(FLEXKERN_STEP)
}

}  // namespace flexkern::bindings
