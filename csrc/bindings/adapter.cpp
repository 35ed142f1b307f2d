// The gated adapter: checks and unpacking.
#include "cpu/adapter.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "device.h"
#include "flexkern/operators.h"

namespace flexkern::bindings {

namespace {

void check_tensor(const Tensor& tensor, const char* name, const Tensor& x, std::initializer_list<int64_t> shape) {
  FLEXKERN_CHECK(tensor.defined(), name, " is missing");
  FLEXKERN_CHECK(tensor.device().type() == kDevice, name, " must be ", kOnDevice);
  FLEXKERN_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  FLEXKERN_CHECK(tensor.scalar_type() == x.scalar_type(), name, " must have the dtype of x");
  const auto sizes = tensor.sizes();
  FLEXKERN_CHECK(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), name, " has the wrong shape");
}

// What forward and backward have in common.
template <class Given>
cpu::AdapterSizes check(const Given& given) {
  const Tensor &x = given.x, &down = given.down;
  FLEXKERN_CHECK(x.defined() && down.defined() && given.index.defined(), "x, down or index is missing");
  FLEXKERN_CHECK(x.dim() == 3 && down.dim() == 3, "x must be [samples, positions, d] and down [tasks, d, r]");
  const cpu::AdapterSizes sizes{x.size(0), x.size(1), x.size(2), down.size(2), down.size(0)};
  FLEXKERN_CHECK(sizes.d > 0 && sizes.r > 0, "d and r must be at least 1");
  check_tensor(x, "x", x, {sizes.samples, sizes.positions, sizes.d});
  check_tensor(down, "down", x, {sizes.tasks, sizes.d, sizes.r});
  check_tensor(given.up, "up", x, {sizes.tasks, sizes.r, sizes.d});
  FLEXKERN_CHECK(given.dropout_p >= 0 && given.dropout_p < 1, "dropout_p must be in [0, 1), got ", given.dropout_p);
  const Tensor& index = given.index;
  FLEXKERN_CHECK(index.scalar_type() == ScalarType::Long || index.scalar_type() == ScalarType::Int,
                 "index must be int32 or int64");
  FLEXKERN_CHECK(index.device().type() == kDevice && index.is_contiguous() && index.dim() == 1 &&
                     index.size(0) == sizes.samples,
                 "index must be contiguous, ", kOnDevice, ", with one entry for each sample");
  return sizes;
}

std::tuple<Tensor, Tensor> forward(const AdapterForward& given) {
  const Dtype dtype = dtype_of(given.x, "x");
  const cpu::AdapterSizes sizes = check(given);
  check_tensor(given.down_bias, "down_bias", given.x, {sizes.tasks, sizes.r});
  check_tensor(given.up_bias, "up_bias", given.x, {sizes.tasks, sizes.d});
  if (given.residual.has_value()) {
    check_tensor(*given.residual, "residual", given.x, {sizes.samples, sizes.positions, sizes.d});
  }
  check_range(std::abs(given.scale), "the size of scale", 0.0, 1e38);
  FLEXKERN_CHECK(given.seed.has_value() == (given.dropout_p > 0), "seed must be given for dropout, and only then");
  AdapterHidden dropout;
  if (given.seed.has_value()) {
    const Tensor& seed = *given.seed;
    FLEXKERN_CHECK(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long && seed.device().type() == kDevice,
                   "seed must be one int64 element ", kOnDevice);
    dropout.dropout = true;
    dropout.seed = static_cast<uint64_t>(*data<int64_t>(seed));
    dropout.p = static_cast<float>(given.dropout_p);
    dropout.factor = static_cast<float>(1.0 / (1.0 - given.dropout_p));
  }
  auto [out, hidden] =
      cpu::adapter_forward(given.x, {given.down, given.down_bias, given.up, given.up_bias}, given.index,
                           given.residual, dropout, static_cast<float>(given.scale), sizes, dtype);
  return {out, given.keep_hidden ? hidden : cpu::new_tensor({0}, given.x.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const AdapterBackward& given) {
  const Dtype dtype = dtype_of(given.x, "x");
  const cpu::AdapterSizes sizes = check(given);
  check_tensor(given.grad_out, "grad_out", given.x, {sizes.samples, sizes.positions, sizes.d});
  check_tensor(given.hidden, "hidden", given.x, {sizes.samples, sizes.positions, sizes.r});
  return cpu::adapter_backward(given.grad_out, given.x, given.hidden, given.down, given.up, given.index,
                               given.scale, given.dropout_p, given.need_x, given.need_bank, sizes, dtype);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, FLEXKERN_DEVICE, m) {
  FLEXKERN_OPERATOR(m, gated_adapter, forward);
  FLEXKERN_OPERATOR(m, gated_adapter_backward, backward);
}

}  // namespace flexkern::bindings
