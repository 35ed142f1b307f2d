// One pass over the synapses of a layer inside the product that makes its gradient, by each rule.
#include "cpu/linear.h"

#include "layers.h"

namespace flexkern::bindings {

namespace {

// A batch [batch, units]; `like` has its dtype and batch.
void check_batch(const Tensor& batch, const char* name, int64_t units, const Tensor& like) {
  FLEXKERN_CHECK(batch.dim() == 2 && batch.size(0) == like.size(0) && batch.size(1) == units, name,
                 " must be [batch, ", units, "], with the batch of x");
  FLEXKERN_CHECK(
      batch.is_contiguous() && batch.device().type() == kDevice && batch.scalar_type() == like.scalar_type(), name,
      " must be contiguous, ", kOnDevice, ", and of the dtype of x");
  dtype_of(batch, name);
}

template <class Given>
Tensor step(const Given& given) {
  auto call = decode_layer(given, given.weight);
  auto& layer = call.layer;
  check_batch(given.x, "x", layer.columns, given.x);
  check_batch(given.grad_out, "grad_out", layer.rows, given.x);
  const bool hebbian = given.activities.size() == 1;
  if (hebbian) check_batch(given.activities[0], "post", layer.rows, given.x);
  FLEXKERN_CHECK(given.silent.has_value() != given.activities.empty(), "activities and silent must come together");
  if (!hebbian && !given.activities.empty()) decode_activities(layer, given.weight, given.activities);
  given.check_dtypes();
  given.check_memory();
  Tensor counts = new_counts(layer, given.weight);
  if (given.weight.numel() > 0) {
    cpu::linear(layer, call.step, call.weight, given.x, given.grad_out, hebbian ? &given.activities[0] : nullptr);
  }
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, FLEXKERN_DEVICE, m) {
#define FLEXKERN_STEP(Given, op) FLEXKERN_OPERATOR(m, op, step<Given>);
  FLEXKERN_LINEAR_STEPS(FLEXKERN_STEP)
}

}  // namespace flexkern::bindings
