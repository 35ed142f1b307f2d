#include "layer_arguments.h"

namespace flexkern::bindings {

LayerCall decode_layer(const Tensor& weight, const Tensor& grad, const Tensors& inputs,
                       const LayerArguments& arguments, DeviceType device) {
  const LayerArguments& given = arguments;
  STD_TORCH_CHECK(weight.dim() == 2, "weight must be a matrix");
  const SgdCall sgd =
      decode_sgd({weight}, {grad}, given.alpha.empty() ? given.anchor : Tensors{}, given.flexibility, given.alpha,
                 given.sources, given.parameters, given.momentum_buffer, given.master, given.lr, given.lr_tensor,
                 given.scale, given.scale_tensor, given.weight_decay, given.momentum, given.dampening,
                 given.nesterov, given.maximize, given.skip_nonfinite, device);
  LayerCall call;
  call.rule = sgd.rule;
  call.weight = sgd.weight;
  call.grad = sgd.grad;
  SynapseLayer& layer = call.layer;
  layer.synapses = sgd.tensors[0];
  layer.rows = weight.size(0);
  layer.columns = weight.size(1);
  // A gate that does not look at the anchor (held, or f = 1) needs it none the less, for what converts.
  layer.synapses.anchor =
      decode_sources({weight}, given.anchor, "anchor", given.sources, given.parameters, 0, device)[0];
  if (!given.silent.empty()) {
    const Tensor& words = given.silent[0];
    STD_TORCH_CHECK(given.silent.size() == 1 && words.size(0) == layer.rows,
                    "silent must be one mask of as many "
                    "rows as weight");
    check_words(words, layer.columns, device);
    layer.silent = static_cast<int32_t*>(words.data_ptr());
  }
  if (given.hebbian) {
    STD_TORCH_CHECK(layer.synapses.anchor.kind == Kind::kStored, "Hebbian insertion needs a stored anchor");
    layer.anchor = static_cast<float*>(given.anchor[0].data_ptr());
  }
  layer.threshold = static_cast<float>(given.threshold);
  if (given.threshold_tensor.has_value()) {
    const Tensor& theta = *given.threshold_tensor;
    STD_TORCH_CHECK(theta.scalar_type() == ScalarType::Float && theta.is_contiguous() &&
                        theta.device().type() == device && (theta.numel() == 1 || theta.numel() == layer.rows),
                    "threshold_tensor must be contiguous float32, one element or one for each row, on the "
                    "operator's device");
    layer.thetas = static_cast<const float*>(theta.data_ptr());
    layer.one_theta = theta.numel() == 1;
  }
  layer.eta = static_cast<float>(given.eta);
  layer.prune = static_cast<float>(given.prune);
  const Tensors weights{weight}, none;
  const Tensors thetas = given.threshold_tensor.has_value() ? Tensors{*given.threshold_tensor} : none;
  check_memory(
      {&weights, &given.momentum_buffer, &given.master, &given.silent, given.hebbian ? &given.anchor : &none},
      {&inputs, &given.drive, &given.flexibility, &given.alpha, &thetas, given.hebbian ? &none : &given.anchor});
  return call;
}

Tensor new_counts(const Tensor& weight, SynapseLayer& layer) {
  Tensor counts = torch::stable::new_zeros(weight, {2, layer.rows}, ScalarType::Int);
  layer.converted = static_cast<int32_t*>(counts.data_ptr());
  layer.pruned = layer.converted + layer.rows;
  return counts;
}

void decode_drive(SynapseLayer& layer, const Tensor& weight, const Tensors& drive, DeviceType device) {
  STD_TORCH_CHECK(drive.size() == 1 || drive.size() == 2, "drive must be a coincidence matrix, or pre and post");
  const bool rate = drive.size() == 2;
  for (size_t i = 0; i < drive.size(); ++i) {
    const int64_t elements = !rate ? weight.numel() : i == 0 ? layer.columns : layer.rows;
    STD_TORCH_CHECK(drive[i].numel() == elements && drive[i].scalar_type() == ScalarType::Float &&
                        drive[i].is_contiguous() && drive[i].device().type() == device &&
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
