// The CUDA kernels as the operators see them: pointers, sizes, a stream. No torch headers here, and no CUDA
// headers either. Launchers run on `device`, do not wait, and return nullptr or what went wrong.
#pragma once

#include <cstdint>

#include "flexkern/synapse.h"

namespace flexkern::cuda {

using Stream = void*;  // a cudaStream_t

// One step of `count` tensors in one launch (in groups of kMaxTensors where there are more).
const char* sgd(const SgdTensor* tensors, int count, const SgdRule& rule, Dtype weight, Dtype grad, int device,
                Stream stream);

// `scale_pointer`, where not null, is read on the device in place of `scale`.
const char* gate(const float* weight, const Source& anchor, const Source& flexibility, float scale,
                 const float* scale_pointer, float* alpha, int64_t numel, int device, Stream stream);

// The synapses of one layer; adds to layer.converted and layer.pruned.
const char* synapse(const SynapseLayer& layer, const SgdRule& rule, Dtype weight, Dtype grad, int device,
                    Stream stream);

const char* fill_field(const Source& source, float* out, int64_t numel, int device, Stream stream);

const char* pack_mask(const uint8_t* mask, int32_t* words, int64_t rows, int64_t columns, int device,
                      Stream stream);
const char* unpack_mask(const int32_t* words, uint8_t* mask, int64_t rows, int64_t columns, int device,
                        Stream stream);

}  // namespace flexkern::cuda
