// The CPU operators. Their schemas are defined in flexkern/ops.
#include "../cpu/kernels.h"
#include "arguments.h"
#include "cpu_work.h"

namespace flexkern::bindings {

namespace {

constexpr DeviceType kCpu = DeviceType::CPU;

void step(const SgdArguments& given) {
  SgdCall call = decode_sgd(given, kCpu);
  read_numbers(call.rule);
  // All tensors are laid end to end, in units, so that one parallel region serves the whole list.
  std::vector<int64_t> first(call.tensors.size() + 1, 0);
  for (size_t i = 0; i < call.tensors.size(); ++i) first[i + 1] = first[i] + units(call.tensors[i].numel);
  const auto kernel = cpu::kernels().sgd;
  torch::stable::parallel_for(0, first.back(), step_grain(call.tensors), [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (; i < call.tensors.size() && first[i] < end; ++i) {
      const SgdTensor& tensor = call.tensors[i];
      kernel(tensor, call.rule, call.weight, call.grad, std::max<int64_t>(begin - first[i], 0) * kUnit,
             std::min((end - first[i]) * kUnit, tensor.numel));
    }
  });
}

void sgd(FLEXKERN_SGD_PARAMETERS(Tensors)) { step(FLEXKERN_SGD_ARGUMENTS); }
void sgd_one(FLEXKERN_SGD_PARAMETERS(Tensor)) { step(FLEXKERN_SGD_ARGUMENTS); }

Tensor gate(Tensor weight, std::optional<Tensor> anchor, std::optional<Tensor> flexibility, double scale,
            OptionalInts sources, OptionalFloats parameters, std::optional<Tensor> scale_tensor) {
  const GateCall call =
      decode_gate(weight, anchor, flexibility, scale, {listed(sources), listed(parameters)}, scale_tensor, kCpu);
  const float s = call.scale_pointer != nullptr ? *call.scale_pointer : call.scale;
  Tensor alpha = new_tensor(weight.sizes(), ScalarType::Float);
  const float* w = static_cast<const float*>(weight.data_ptr());
  float* out = static_cast<float*>(alpha.data_ptr());
  const auto kernel = cpu::kernels().gate;
  parallel_elements(weight.numel(), [&](int64_t begin, int64_t end) {
    kernel(w, call.anchor, call.flexibility, s, out, begin, end);
  });
  return alpha;
}

void fill_field(Tensor out, std::vector<int64_t> source, std::vector<double> parameters) {
  check_like(out, "out", out, kCpu, ScalarType::Float);
  STD_TORCH_CHECK(source.size() == kSourceInts && parameters.size() == kSourceFloats, "a source is ", kSourceInts,
                  " integers and ", kSourceFloats, " numbers");
  const Source field = field_source(source.data(), parameters.data());
  float* values = static_cast<float*>(out.data_ptr());
  const auto kernel = cpu::kernels().fill_field;
  parallel_elements(out.numel(), [&](int64_t begin, int64_t end) { kernel(field, values, begin, end); });
}

Tensor pack_mask(Tensor mask) {
  const int64_t per_row = check_mask(mask, kCpu);
  const int64_t rows = mask.size(0), columns = mask.size(1);
  Tensor words = new_tensor({rows, per_row}, ScalarType::Int);
  const uint8_t* in = static_cast<const uint8_t*>(mask.data_ptr());
  int32_t* out = static_cast<int32_t*>(words.data_ptr());
  const auto kernel = cpu::kernels().pack_mask;
  torch::stable::parallel_for(0, rows, row_grain(columns),
                              [&](int64_t begin, int64_t end) { kernel(in, out, columns, begin, end); });
  return words;
}

Tensor unpack_mask(Tensor words, int64_t columns) {
  check_words(words, columns, kCpu);
  const int64_t rows = words.size(0);
  Tensor mask = new_tensor({rows, columns}, ScalarType::Bool);
  const int32_t* in = static_cast<const int32_t*>(words.data_ptr());
  uint8_t* out = static_cast<uint8_t*>(mask.data_ptr());
  const auto kernel = cpu::kernels().unpack_mask;
  torch::stable::parallel_for(0, rows, row_grain(columns),
                              [&](int64_t begin, int64_t end) { kernel(in, out, columns, begin, end); });
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, CPU, m) {
  m.impl("metaplastic_sgd_", TORCH_BOX(&sgd));
  m.impl("metaplastic_sgd_.one", TORCH_BOX(&sgd_one));
  m.impl("metaplastic_gate", TORCH_BOX(&gate));
  m.impl("fill_field_", TORCH_BOX(&fill_field));
  m.impl("pack_mask", TORCH_BOX(&pack_mask));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask));
}

}  // namespace flexkern::bindings
