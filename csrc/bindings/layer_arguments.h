// From the arguments of synapse_step_ and linear_step_ to the plain structs that kernels take (see arguments.h).
#pragma once

#include <initializer_list>

#include "arguments.h"
#include "flexkern/synapse.h"

namespace flexkern::bindings {

// The state of a layer's synapses and the numbers of a step, as both operators have them after their gradient.
struct LayerArguments {
  std::optional<Tensor> anchor, flexibility, silent;
  Tensors drive;
  double threshold, lr, scale;
  std::optional<Tensor> alpha;
  SourceRows sources;
  std::optional<Tensor> momentum_buffer, master, threshold_tensor, lr_tensor, scale_tensor;
  bool hebbian;
  double eta, prune, weight_decay, momentum, dampening;
  bool nesterov, maximize, skip_nonfinite;
  bool writes_anchor() const { return hebbian && silent.has_value(); }
};

// The dispatcher passes arguments one by one; both operators end with those of LayerArguments.
#define FLEXKERN_LAYER_PARAMETERS                                                                            \
  std::optional<Tensor> anchor, std::optional<Tensor> flexibility, std::optional<Tensor> silent,             \
      OptionalTensors drive, double threshold, double lr, double scale, std::optional<Tensor> alpha,         \
      OptionalInts sources, OptionalFloats parameters, std::optional<Tensor> momentum_buffer,                \
      std::optional<Tensor> master, std::optional<Tensor> threshold_tensor, std::optional<Tensor> lr_tensor, \
      std::optional<Tensor> scale_tensor, bool hebbian, double eta, double prune, double weight_decay,       \
      double momentum, double dampening, bool nesterov, bool maximize, bool skip_nonfinite
#define FLEXKERN_LAYER_ARGUMENTS          \
  {anchor,                                \
   flexibility,                           \
   silent,                                \
   listed(drive),                         \
   threshold,                             \
   lr,                                    \
   scale,                                 \
   alpha,                                 \
   {listed(sources), listed(parameters)}, \
   momentum_buffer,                       \
   master,                                \
   threshold_tensor,                      \
   lr_tensor,                             \
   scale_tensor,                          \
   hebbian,                               \
   eta,                                   \
   prune,                                 \
   weight_decay,                          \
   momentum,                              \
   dampening,                             \
   nesterov,                              \
   maximize,                              \
   skip_nonfinite}

struct LayerCall {
  SynapseLayer layer;
  SgdRule rule;
  Dtype weight = Dtype::kFloat32;
  Dtype grad = Dtype::kFloat32;
};

// Everything but the gradient (for linear_step_ pass the weight in its place), the drive and the counts.
LayerCall decode_layer(const Tensor& weight, const Tensor& grad, const LayerArguments& given, DeviceType device);

// What is written shares no memory with another argument; `inputs` are those before LayerArguments.
void check_layer_memory(const Tensor& weight, std::initializer_list<const Tensor*> inputs,
                        const LayerArguments& given);

// `counts`: int32 [2, rows] zeros, for converted and pruned.
void set_counts(SynapseLayer& layer, const Tensor& counts);

// The drive of synapse_step_ and of the rate rule: a coincidence matrix, or mean activities pre and post.
void decode_drive(SynapseLayer& layer, const Tensor& weight, const Tensors& drive, DeviceType device);

// A batch of linear_step_: [batch, units], contiguous, on the device; `like` has its dtype and batch.
void check_batch(const Tensor& batch, const char* name, int64_t units, const Tensor& like, DeviceType device);

}  // namespace flexkern::bindings
