#include "chunk.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

template <class Rule>
void step(const StepTensor<Rule>& tensor, const Step<Rule>& step, Dtype weight, Dtype grad, int64_t begin,
          int64_t end) {
  ChunkBuffers buffers;
  const FlushSubnormal flush;
  const auto step_chunk = choose_step(tensor);
  const auto number = counted(step.rule, tensor.count);
  for (int64_t i = begin; i < end; i += kChunk) {
    const int64_t count = end - i < kChunk ? end - i : kChunk;
    take_written(tensor, weight, i, count);
    step_chunk(Chunk<Rule>(tensor, number, weight, grad, i, i, count, false, buffers), step);
    round_weight(tensor, weight, i, count);
  }
}

#define FLEXKERN_STEP(Rule) \
  template void step(const StepTensor<Rule>&, const Step<Rule>&, Dtype, Dtype, int64_t, int64_t);
FLEXKERN_RULES(FLEXKERN_STEP)

void gate(const float* weight, const Source& anchor, const Source& flexibility, float scale, float* alpha,
          int64_t begin, int64_t end) {
  alignas(64) FieldBuffer anchor_chunk, flexibility_chunk;
  const float rate = gate_rate(scale);
  const FlushSubnormal flush;
  for (int64_t i = begin; i < end; i += kChunk) {
    const int64_t count = end - i < kChunk ? end - i : kChunk;
    const float* a = source_values(anchor, i, count, anchor_chunk);
    const float* f = source_values(flexibility, i, count, flexibility_chunk);
    const float* w = weight + i;
    for_each_vector(count, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
      store_some(alpha + i + j,
                 gate(load_some(w + j, lanes), load_some(a + j, lanes), load_some(f + j, lanes), rate), lanes);
    });
  }
}

void exp2_nonpositive(const float* x, float* y, int64_t n) {
  for_each_vector(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    store_some(y + i, exp2_nonpositive(load_some(x + i, count)), count);
  });
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
