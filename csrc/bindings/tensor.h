// A tensor as an operator is given it. Each question to torch is a call of some nanoseconds, and the checks ask the
// same ones many times: here torch is asked once.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <utility>
#include <vector>

namespace flexkern::bindings {

using Stable = torch::stable::Tensor;

class Tensor : public Stable {
 public:
  Tensor(Stable tensor) : Stable(std::move(tensor)) {}

  int64_t dim() const { return static_cast<int64_t>(sizes().size()); }
  int64_t size(int64_t i) const { return sizes()[static_cast<size_t>(i)]; }
  torch::headeronly::IntHeaderOnlyArrayRef sizes() const {
    ask();
    return {sizes_, dims_};
  }
  torch::headeronly::IntHeaderOnlyArrayRef strides() const {
    ask();
    return {strides_, dims_};
  }
  int64_t numel() const {
    ask();
    return numel_;
  }
  torch::headeronly::ScalarType scalar_type() const {
    ask();
    return dtype_;
  }
  torch::stable::Device device() const {
    ask();
    return device_;
  }
  torch::stable::DeviceIndex get_device_index() const {
    ask();
    return device_.index();
  }
  // In row-major order, as torch sees it: the strides of sizes of 1 do not matter.
  bool is_contiguous() const {
    int64_t step = 1;
    for (size_t i = sizes().size(); i > 0; --i) {
      if (sizes_[i - 1] != 1 && strides_[i - 1] != step) return numel_ == 0;
      step *= sizes_[i - 1];
    }
    return true;
  }
  void* data_ptr() const {
    if (data_ == nullptr) data_ = Stable::data_ptr();
    return data_;
  }

 private:
  void ask() const {
    if (sizes_ != nullptr) return;
    numel_ = Stable::numel();
    dtype_ = Stable::scalar_type();
    device_ = Stable::device();
    const auto sizes = Stable::sizes();
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(get(), &strides_));
    dims_ = sizes.size();
    sizes_ = sizes.data();
  }

  mutable int64_t* strides_ = nullptr;
  mutable const int64_t* sizes_ = nullptr;  // null: not asked yet
  mutable size_t dims_ = 0;
  mutable int64_t numel_ = 0;
  mutable torch::headeronly::ScalarType dtype_ = torch::headeronly::ScalarType::Undefined;
  mutable torch::stable::Device device_{torch::headeronly::DeviceType::CPU};
  mutable void* data_ = nullptr;
};

using Tensors = std::vector<Tensor>;

}  // namespace flexkern::bindings
