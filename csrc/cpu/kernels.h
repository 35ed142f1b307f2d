// The CPU kernels as the rest of the extension sees them: plain pointers, no torch. Each instruction set has a
// table of them; kernels() gives the best one that this processor runs.
#pragma once

#include "flexkern/adapter.h"
#include "flexkern/synapse.h"

namespace flexkern::cpu {

struct Kernels {
  const char* name;
  // Elements [begin, end) of one tensor; ranges may run on different threads.
  void (*sgd)(const SgdTensor& tensor, const SgdRule& rule, Dtype weight, Dtype grad, int64_t begin, int64_t end);
  void (*gate)(const float* weight, const Source& anchor, const Source& flexibility, float scale, float* alpha,
               int64_t begin, int64_t end);
  // Rows [begin, end) of a layer.
  void (*synapse)(const SynapseLayer& layer, const SgdRule& rule, Dtype weight, Dtype grad, int64_t begin,
                  int64_t end);
  void (*fill_field)(const Source& source, float* out, int64_t begin, int64_t end);
  // Rows [begin, end) of a bool matrix and of its packed words.
  void (*pack_mask)(const uint8_t* mask, int32_t* words, int64_t columns, int64_t begin, int64_t end);
  void (*unpack_mask)(const int32_t* words, uint8_t* mask, int64_t columns, int64_t begin, int64_t end);
  // An adapter's passes over a few rows. column_sums adds those of a matrix to `sums`.
  void (*adapter_hidden)(const AdapterHidden& pass, Dtype dtype);
  void (*adapter_out)(const AdapterOut& pass, Dtype dtype);
  void (*adapter_grad)(const AdapterGrad& pass, Dtype dtype);
  void (*column_sums)(const void* matrix, Dtype dtype, int64_t rows, int64_t columns, float* sums);
  void (*exp2_nonpositive)(const float* x, float* y, int64_t n);  // for the accuracy test
};

// The table in use: the widest instruction set of this processor, or the one that FLEXKERN_ISA names
// ("avx512", "avx2", "baseline"). Read once, at the first call; throws std::runtime_error if it cannot run.
const Kernels& kernels();

}  // namespace flexkern::cpu
