// From the arguments of synapse_step_ and linear_step_ to the plain structs that kernels take (see arguments.h).
#pragma once

#include "arguments.h"
#include "flexkern/synapse.h"

namespace flexkern::bindings {

// The state of a layer's synapses and the numbers of a step, as both operators have them after their gradient.
struct LayerArguments {
  Tensors anchor, flexibility, alpha;
  std::vector<int64_t> sources;
  std::vector<double> parameters;
  Tensors momentum_buffer, master, silent, drive;
  double threshold;
  std::optional<Tensor> threshold_tensor;
  bool hebbian;
  double eta, prune, lr;
  std::optional<Tensor> lr_tensor;
  double scale;
  std::optional<Tensor> scale_tensor;
  double weight_decay, momentum, dampening;
  bool nesterov, maximize, skip_nonfinite;
};

// The dispatcher passes arguments one by one; both operators end with those of LayerArguments.
#define FLEXKERN_LAYER_PARAMETERS                                                                                  \
  Tensors anchor, Tensors flexibility, Tensors alpha, std::vector<int64_t> sources,                                \
      std::vector<double> parameters, Tensors momentum_buffer, Tensors master, Tensors silent, Tensors drive,      \
      double threshold, std::optional<Tensor> threshold_tensor, bool hebbian, double eta, double prune, double lr, \
      std::optional<Tensor> lr_tensor, double scale, std::optional<Tensor> scale_tensor, double weight_decay,      \
      double momentum, double dampening, bool nesterov, bool maximize, bool skip_nonfinite
#define FLEXKERN_LAYER_ARGUMENTS                                           \
  {anchor,           flexibility, alpha,        sources,       parameters, \
   momentum_buffer,  master,      silent,       drive,         threshold,  \
   threshold_tensor, hebbian,     eta,          prune,         lr,         \
   lr_tensor,        scale,       scale_tensor, weight_decay,  momentum,   \
   dampening,        nesterov,    maximize,     skip_nonfinite}

struct LayerCall {
  SynapseLayer layer;
  SgdRule rule;
  Dtype weight = Dtype::kFloat32;
  Dtype grad = Dtype::kFloat32;
};

// Everything but the gradient (for linear_step_ pass the weight in its place), the drive and the counts. `inputs`
// are the operator's other tensors, which must share no memory with what is written.
LayerCall decode_layer(const Tensor& weight, const Tensor& grad, const Tensors& inputs,
                       const LayerArguments& arguments, DeviceType device);

// int32 [2, rows] zeros, for converted and pruned.
Tensor new_counts(const Tensor& weight, SynapseLayer& layer);

// The drive of synapse_step_ and of the rate rule: a coincidence matrix, or mean activities pre and post.
void decode_drive(SynapseLayer& layer, const Tensor& weight, const Tensors& drive, DeviceType device);

// A batch of linear_step_: [batch, units], contiguous, on the device; `like` has its dtype and batch.
void check_batch(const Tensor& batch, const char* name, int64_t units, const Tensor& like, DeviceType device);

}  // namespace flexkern::bindings
