// From operator arguments to the plain structs that kernels take, with the checks that keep memory safe. The
// checks that explain themselves to users are in flexkern/ops; these hold for direct calls of torch.ops too.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <iterator>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/check.h"
#include "direct.h"
#include "flexkern/update.h"
#include "tensor.h"

// Registers a body as the kernel of an operator, or of its overload of one tensor; in the CPU library for direct
// calls, too.
#ifdef FLEXKERN_FOR_CUDA
#define FLEXKERN_REGISTER(m, name, unpacking, ...) m.impl(name, TORCH_BOX(&unpack::unpacking<__VA_ARGS__>))
#else
#define FLEXKERN_REGISTER(m, name, unpacking, ...)          \
  m.impl(name, TORCH_BOX(&unpack::unpacking<__VA_ARGS__>)); \
  direct::add(name, &unpack::directly_##unpacking<__VA_ARGS__>)
#endif
#define FLEXKERN_OPERATOR(m, op, ...) FLEXKERN_REGISTER(m, #op, op, __VA_ARGS__)
#define FLEXKERN_OVERLOAD(m, op, ...) FLEXKERN_REGISTER(m, #op ".one", op##_one, __VA_ARGS__)

namespace flexkern::bindings {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

// Numbers for each source in the operators' `sources` and `parameters`; flexkern.fields has the same.
constexpr int64_t kSourceInts = 5;
constexpr int64_t kSourceFloats = 2;

Dtype dtype_of(const Tensor& tensor, const char* name);

// Contiguous, on the operators' device, of `dtype`, with the shape of the weight.
void check_like(const Tensor& tensor, const char* name, const Tensor& weight, ScalarType dtype);

// The tensor is an ordinary one, and its elements lie in its storage: not so where somebody resized that, and of
// tensors that pretend to have memory (zero and fake tensors). Asked of every tensor of every operator first.
void check_memory_of(const Tensor& tensor, const char* name);
void check_memory_of(const Tensors& tensors, const char* name);
inline void check_memory_of(const std::optional<Tensor>& tensor, const char* name) {
  if (tensor.has_value()) check_memory_of(*tensor, name);
}

// A set of dtypes.
using Dtypes = uint64_t;
template <class... Types>
constexpr Dtypes dtypes(Types... types) {
  return ((Dtypes{1} << static_cast<int>(types)) | ...);
}
inline Dtypes dtypes_like(const Tensor& tensor) { return tensor.defined() ? dtypes(tensor.scalar_type()) : 0; }
inline Dtypes dtypes_like(const Tensors& tensors) { return tensors.empty() ? 0 : dtypes_like(tensors[0]); }

// The tensor is of one of these dtypes. Asked of every tensor of a step, as what a call does not read would be
// looked at nowhere else.
void check_dtype_of(const Tensor& tensor, const char* name, Dtypes allowed);
void check_dtype_of(const Tensors& tensors, const char* name, Dtypes allowed);
inline void check_dtype_of(const std::optional<Tensor>& tensor, const char* name, Dtypes allowed) {
  if (tensor.has_value()) check_dtype_of(*tensor, name, allowed);
}

// NaN is in no range.
void check_range(double value, const char* name, double low, double high);

// A number that is not 0 is not 0 in float32 either: for numbers whose 0 means something else than a small one.
void check_not_lost(double value, const char* name);

// A one-element float32 tensor, or nothing.
const float* number_pointer(const std::optional<Tensor>& tensor, const char* name);

// Looks at a scale that no tensor takes the place of.
void check_scale(double scale, const float* pointer);

Source field_source(const int64_t* row, const double* parameters);

// Anchors and flexibilities that are not stored: a row for the anchor of each of `count` weights, then one for the
// flexibility of each; both are empty if all are stored.
struct SourceRows {
  const std::vector<int64_t>& ints;
  const std::vector<double>& floats;
  void check(size_t count) const;
  bool is_stored(size_t row) const;
  Source field(size_t row) const { return field_source(&ints[row * kSourceInts], &floats[row * kSourceFloats]); }
};

// A stored source.
Source stored_source(const Tensor& tensor, const char* name, const Tensor& weight);

// The anchor or the flexibility of one weight, of which those that are stored are given.
Source one_source(const std::optional<Tensor>& stored, const char* name, const Tensor& weight,
                  const SourceRows& sources, size_t row);

// The sources of all weights; `stored` has the tensors of stored ones, in order, and `first` is where their rows
// begin.
std::vector<Source> all_sources(const Tensors& weights, const Tensors& stored, const char* name,
                                const SourceRows& sources, size_t first);

// All tensors that are on GPUs are on one: a kernel would read another's memory, or fail there. Numbers may be on
// the CPU, where the other checks allow it.
class DeviceCheck {
 public:
  void sees(const Tensor& tensor, const char* name) {
    if (tensor.defined() && tensor.device().type() != DeviceType::CPU) on(tensor.get_device_index(), name);
  }
  void sees(const Tensors& tensors, const char* name) {
    for (const Tensor& tensor : tensors) sees(tensor, name);
  }
  void sees(const std::optional<Tensor>& tensor, const char* name) {
    if (tensor.has_value()) sees(*tensor, name);
  }
  void on(int64_t index, const char* name) {
    if (first_ == nullptr) {
      first_ = name;
      index_ = index;
    }
    FLEXKERN_CHECK(index == index_, name, " is on GPU ", index, ", but ", first_, " on GPU ", index_);
  }

 private:
  const char* first_ = nullptr;
  int64_t index_ = 0;
};

// Looks for a written tensor that shares memory with another argument.
class MemoryCheck {
 public:
  void writes(const Tensor& tensor) { add(tensor, true); }
  void reads(const Tensor& tensor) { add(tensor, false); }
  void writes(const Tensors& tensors);
  void reads(const Tensors& tensors);
  void writes(const std::optional<Tensor>& tensor) {
    if (tensor.has_value()) add(*tensor, true);
  }
  void reads(const std::optional<Tensor>& tensor) {
    if (tensor.has_value()) add(*tensor, false);
  }
  void finish();

 private:
  struct Extent {
    const char* begin;
    const char* end;
    bool written;
  };
  void add(const Tensor& tensor, bool written);
  std::vector<Extent> extents_;
};

// A tensor, or one that may be missing.
inline Tensor taken(Stable& tensor) { return std::move(tensor); }
inline std::optional<Tensor> taken(std::optional<Stable>& tensor) {
  std::optional<Tensor> result;
  if (tensor.has_value()) result.emplace(std::move(*tensor));
  return result;
}

// A list that may be missing, as one that may be empty; one tensor as a list of one.
template <class T>
std::vector<T> listed(std::vector<T>& list) {
  return std::move(list);
}
template <class T>
std::vector<T> listed(std::optional<std::vector<T>>& list) {
  return list.has_value() ? std::move(*list) : std::vector<T>{};
}
inline Tensors listed(std::vector<Stable>& list) {
  return Tensors(std::make_move_iterator(list.begin()), std::make_move_iterator(list.end()));
}
inline Tensors listed(std::optional<std::vector<Stable>>& list) {
  return list.has_value() ? listed(*list) : Tensors{};
}
inline Tensors listed(Stable& tensor) { return {std::move(tensor)}; }
inline Tensors listed(std::optional<Stable>& tensor) { return tensor.has_value() ? listed(*tensor) : Tensors{}; }

namespace direct {

// An argument of a direct call, as the dispatcher would pass it. A tensor's handle is taken over.
template <class T>
struct Taken;
template <>
struct Taken<double> {
  static double of(const flexkern::direct::Passed& passed) { return passed.number; }
};
template <>
struct Taken<int64_t> {
  static int64_t of(const flexkern::direct::Passed& passed) { return passed.integer; }
};
template <>
struct Taken<bool> {
  static bool of(const flexkern::direct::Passed& passed) { return passed.integer != 0; }
};
template <>
struct Taken<Stable> {
  static Stable of(const flexkern::direct::Passed& passed) {
    return Stable(static_cast<AtenTensorHandle>(passed.handles[0]));
  }
};
template <>
struct Taken<std::vector<Stable>> {
  static std::vector<Stable> of(const flexkern::direct::Passed& passed) {
    std::vector<Stable> tensors;
    tensors.reserve(passed.count);
    for (size_t i = 0; i < passed.count; ++i)
      tensors.emplace_back(static_cast<AtenTensorHandle>(passed.handles[i]));
    return tensors;
  }
};
template <>
struct Taken<std::vector<int64_t>> {
  static std::vector<int64_t> of(const flexkern::direct::Passed& passed) {
    return {passed.integers, passed.integers + passed.count};
  }
};
template <>
struct Taken<std::vector<double>> {
  static std::vector<double> of(const flexkern::direct::Passed& passed) {
    return {passed.numbers, passed.numbers + passed.count};
  }
};
template <class T>
struct Taken<std::optional<T>> {
  static std::optional<T> of(const flexkern::direct::Passed& passed) {
    return passed.given ? std::optional<T>(Taken<T>::of(passed)) : std::nullopt;
  }
};

// The results of a direct call, for the caller.
inline size_t keep(void** results, const Stable& tensor) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.get(), &handle));
  results[0] = handle;
  return 1;
}
// The rows of a contiguous matrix [2, n]: to take a tensor apart later takes Python 1.5 microseconds.
inline size_t keep_rows(void** results, const Tensor& matrix) {
  const int64_t size = matrix.size(1), step = 1;
  for (int64_t i = 0; i < 2; ++i) {
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(matrix.get(), 1, &size, &step, i * size, &handle));
    results[i] = handle;
  }
  return 2;
}
template <class... Each>
size_t keep(void** results, const std::tuple<Each...>& tensors) {
  static_assert(sizeof...(Each) <= flexkern::direct::kMostResults);
  size_t count = 0;
  std::apply([&](const Each&... each) { ((count += keep(results + count, each)), ...); }, tensors);
  return count;
}

void add(const char* name, flexkern::direct::Function function);

}  // namespace direct

// The values of a tensor.
template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace flexkern::bindings
