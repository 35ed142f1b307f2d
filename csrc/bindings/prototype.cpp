// Logits of a prototype classifier, for small heads: a direct call only, no operator of the dispatcher, as what
// differentiates, traces or is large takes the library's products (flexkern/ops/prototype.py).
#include <algorithm>
#include <cmath>

#include "device.h"

namespace flexkern::bindings {

namespace {

void check_vectors(const Tensor& tensor, const char* name) {
  check_memory_of(tensor, name);
  FLEXKERN_CHECK(tensor.dim() == 3 && tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() &&
                     tensor.device().type() == kDevice,
                 name, " must be contiguous float32 [.., K, dim], ", kOnDevice);
}

// What each class's own subspace is.
std::vector<int64_t> own_subspaces(const Tensor& own, int64_t classes, int64_t subspaces) {
  check_memory_of(own, "own_subspace");
  const bool wide = own.scalar_type() == ScalarType::Long;
  FLEXKERN_CHECK((wide || own.scalar_type() == ScalarType::Int) && own.dim() == 1 && own.size(0) == classes &&
                     own.is_contiguous() && own.device().type() == kDevice,
                 "own_subspace must be contiguous integers, one for each class, ", kOnDevice);
  std::vector<int64_t> result(classes);
  for (int64_t c = 0; c < classes; ++c) {
    result[c] = wide ? data<int64_t>(own)[c] : data<int32_t>(own)[c];
    FLEXKERN_CHECK(result[c] >= 0 && result[c] < subspaces, "own_subspace must be in [0, ", subspaces, ")");
  }
  return result;
}

double product(const float* a, const float* b, int64_t dim) {
  double sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// The length of each vector, but at least 1e-12, as torch.nn.functional.normalize has it. NaN stays.
std::vector<double> lengths(const float* vectors, int64_t count, int64_t dim) {
  std::vector<double> result(count);
  for (int64_t i = 0; i < count; ++i) {
    const double length = std::sqrt(product(vectors + i * dim, vectors + i * dim, dim));
    result[i] = length < 1e-12 ? 1e-12 : length;
  }
  return result;
}

// features, prototypes, own_subspace, openings, the weights of other subspaces and of the first, and whether the
// first has a weight of its own.
size_t logits(const flexkern::direct::Passed* passed, void** results) {
  const Tensor features = direct::Taken<Stable>::of(passed[0]), prototypes = direct::Taken<Stable>::of(passed[1]);
  const Tensor own_subspace = direct::Taken<Stable>::of(passed[2]);
  std::optional<Stable> given = direct::Taken<std::optional<Stable>>::of(passed[3]);
  const std::optional<Tensor> openings = taken(given);
  const double rest = passed[4].number, first = passed[5].number;
  const bool has_base = passed[6].integer != 0;
  check_vectors(features, "features");
  check_vectors(prototypes, "prototypes");
  const int64_t samples = features.size(0), classes = prototypes.size(0), subspaces = features.size(1);
  const int64_t dim = features.size(2);
  FLEXKERN_CHECK(prototypes.size(1) == subspaces && prototypes.size(2) == dim,
                 "features and prototypes differ in K or dim");
  const std::vector<int64_t> own = own_subspaces(own_subspace, classes, subspaces);
  const float* opening = nullptr;
  if (openings.has_value()) {
    check_memory_of(*openings, "openings");
    FLEXKERN_CHECK(openings->dim() == 2 && openings->size(0) == samples && openings->size(1) == subspaces &&
                       openings->scalar_type() == ScalarType::Float && openings->is_contiguous() &&
                       openings->device().type() == kDevice,
                   "openings must be contiguous float32 [N, K], ", kOnDevice);
    opening = data<float>(*openings);
  }
  check_range(rest, "weight", -1e38, 1e38);
  check_range(first, "base_weight", -1e38, 1e38);

  const float *x = data<float>(features), *p = data<float>(prototypes);
  const std::vector<double> of_x = lengths(x, samples * subspaces, dim);
  const std::vector<double> of_p = lengths(p, classes * subspaces, dim);
  const Stable out = cpu::new_tensor({samples, classes}, ScalarType::Float);
  float* logit = static_cast<float*>(out.data_ptr());
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t c = 0; c < classes; ++c) {
      double sum = 0;
      for (int64_t k = 0; k < subspaces; ++k) {
        const int64_t at_x = n * subspaces + k, at_p = c * subspaces + k;
        const double weight = k == own[c] ? 1.0 : has_base && k == 0 ? first : rest;
        const double open = opening == nullptr ? 1.0 : opening[at_x];
        sum += open * weight * (product(x + at_x * dim, p + at_p * dim, dim) / (of_x[at_x] * of_p[at_p]));
      }
      logit[n * classes + c] = static_cast<float>(sum);
    }
  }
  return direct::keep(results, out);
}

const bool kAdded = (direct::add("prototype_logits", &logits), true);

}  // namespace

}  // namespace flexkern::bindings
