#include "layer_arguments.h"

namespace flexkern::bindings {

namespace {

const Tensor* pointer(const std::optional<Tensor>& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

void decode_silent(SynapseLayer& layer, const LayerArguments& given, DeviceType device) {
  const Tensor& words = *given.silent;
  STD_TORCH_CHECK(words.size(0) == layer.rows, "silent must be a mask of as many rows as weight");
  check_words(words, layer.columns, device);
  layer.silent = static_cast<int32_t*>(words.data_ptr());
  if (given.hebbian) {
    STD_TORCH_CHECK(layer.synapses.anchor.kind == Kind::kStored, "Hebbian insertion needs a stored anchor");
    layer.anchor = static_cast<float*>(given.anchor->data_ptr());
  }
  if (given.threshold_tensor.has_value()) {
    const Tensor& theta = *given.threshold_tensor;
    STD_TORCH_CHECK(theta.scalar_type() == ScalarType::Float && theta.is_contiguous() &&
                        theta.device().type() == device && (theta.numel() == 1 || theta.numel() == layer.rows),
                    "threshold_tensor must be contiguous float32, one element or one for each row, on the "
                    "operator's device");
    layer.thetas = static_cast<const float*>(theta.data_ptr());
    layer.one_theta = theta.numel() == 1;
  } else {
    check_range(given.threshold, "threshold");
  }
  check_range(given.eta, "eta");
  check_range(given.prune, "prune");
  layer.threshold = static_cast<float>(given.threshold);
  layer.eta = static_cast<float>(given.eta);
  layer.prune = static_cast<float>(given.prune);
}

}  // namespace

LayerCall decode_layer(const Tensor& weight, const Tensor& grad, const LayerArguments& given, DeviceType device) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must be a matrix");
  LayerCall call;
  call.weight = dtype_of(weight, "weight");
  call.grad = dtype_of(grad, "grad");
  check_grad_dtype(call.grad, call.weight);
  given.sources.check(1);
  const bool held = given.alpha.has_value(), low = call.weight != Dtype::kFloat32;
  call.rule = decode_rule({given.lr, given.lr_tensor, given.scale, given.scale_tensor, given.weight_decay,
                           given.momentum, given.dampening, given.nesterov, given.maximize, given.skip_nonfinite},
                          !held);
  STD_TORCH_CHECK(given.momentum == 0 || given.momentum_buffer.has_value(), "momentum_buffer is missing");
  STD_TORCH_CHECK(!low || given.master.has_value(), "master is missing");
  SynapseLayer& layer = call.layer;
  layer.rows = weight.size(0);
  layer.columns = weight.size(1);
  layer.synapses = decode_tensor(
      {weight, grad, pointer(given.alpha), given.momentum != 0 ? pointer(given.momentum_buffer) : nullptr,
       low ? pointer(given.master) : nullptr},
      weight.scalar_type(), grad.scalar_type(), device);
  STD_TORCH_CHECK(layer.synapses.gate != Gate::kStoredBFloat16, "alpha of a layer must be float32");
  // A gate that does not look at the anchor (held, or f = 1) needs it none the less, for what converts.
  layer.synapses.anchor = one_source(given.anchor, "anchor", weight, given.sources, 0, device);
  if (!held) {
    set_sources(layer.synapses, layer.synapses.anchor,
                one_source(given.flexibility, "flexibility", weight, given.sources, 1, device));
  }
  if (given.silent.has_value()) decode_silent(layer, given, device);
  return call;
}

void check_layer_memory(const Tensor& weight, std::initializer_list<const Tensor*> inputs,
                        const LayerArguments& given) {
  MemoryCheck memory;
  memory.writes(weight);
  memory.writes(given.momentum_buffer);
  memory.writes(given.master);
  memory.writes(given.silent);
  if (given.writes_anchor()) {
    memory.writes(given.anchor);
  } else {
    memory.reads(given.anchor);
  }
  for (const Tensor* input : inputs) memory.reads(*input);
  memory.reads(given.drive);
  memory.reads(given.flexibility);
  memory.reads(given.alpha);
  memory.reads(given.threshold_tensor);
  memory.finish();
}

void set_counts(SynapseLayer& layer, const Tensor& counts) {
  layer.converted = static_cast<int32_t*>(counts.data_ptr());
  layer.pruned = layer.converted + layer.rows;
}

void decode_drive(SynapseLayer& layer, const Tensor& weight, const Tensors& drive, DeviceType device) {
  STD_TORCH_CHECK(drive.size() == 1 || drive.size() == 2, "drive must be a coincidence matrix, or pre and post");
  const bool rate = drive.size() == 2;
  for (size_t i = 0; i < drive.size(); ++i) {
    const bool fits =
        rate ? drive[i].dim() == 1 && drive[i].size(0) == (i == 0 ? layer.columns : layer.rows)
             : drive[i].dim() == 2 && drive[i].size(0) == layer.rows && drive[i].size(1) == layer.columns;
    STD_TORCH_CHECK(fits && drive[i].scalar_type() == ScalarType::Float && drive[i].is_contiguous() &&
                        drive[i].device().type() == device &&
                        drive[i].get_device_index() == weight.get_device_index(),
                    "drive must be contiguous float32 on the weight's device, a coincidence of its size or one "
                    "activity for each column and each row");
  }
  const float* first = static_cast<const float*>(drive[0].data_ptr());
  if (rate) {
    layer.pre = first;
    layer.post = static_cast<const float*>(drive[1].data_ptr());
  } else {
    layer.coincidence = first;
  }
}

void check_batch(const Tensor& batch, const char* name, int64_t units, const Tensor& like, DeviceType device) {
  STD_TORCH_CHECK(batch.dim() == 2 && batch.size(0) == like.size(0) && batch.size(1) == units, name,
                  " must be [batch, ", units, "], with the batch of x");
  STD_TORCH_CHECK(
      batch.is_contiguous() && batch.device().type() == device && batch.scalar_type() == like.scalar_type(), name,
      " must be contiguous, on the operator's device, and of the dtype of x");
  dtype_of(batch, name);
}

}  // namespace flexkern::bindings
