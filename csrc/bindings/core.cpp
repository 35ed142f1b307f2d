// flexkern._core: build information, procedural fields as NumPy arrays without torch, and direct calls of
// operators.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "build_info.h"
#include "core_direct.h"
#include "cpu/dispatch.h"
#include "flexkern/field.h"

FLEXKERN_KERNEL(void fill_field(const Source& source, float* out, int64_t begin, int64_t end);
                // For the test of its accuracy.
                void exp2_nonpositive(const float* x, float* y, int64_t n);)

namespace py = pybind11;

namespace flexkern {

static py::dict build_info() {
  py::dict info;
  info["compiler"] = FLEXKERN_COMPILER;
  info["cuda_compiler"] = FLEXKERN_CUDA_COMPILER;
  info["cuda_architectures"] = FLEXKERN_CUDA_ARCHS;
  info["torch_headers"] = FLEXKERN_TORCH_HEADERS;
  info["instruction_set"] = cpu::name_of(cpu::instruction_set());
  return info;
}

static py::array_t<float> field(std::vector<py::ssize_t> shape, int kind, uint64_t seed, uint32_t stream,
                                uint64_t offset, uint32_t purpose, double p0, double p1) {
  if (!is_computed(kind))
    throw py::value_error("kind must be 1 .. " + std::to_string(FLEXKERN_LAST_KIND) + ", got " +
                          std::to_string(kind));
  Source source;
  source.kind = static_cast<Kind>(kind);
  source.seed = seed;
  source.stream = stream;
  source.offset = offset;
  source.purpose = purpose;
  source.set_parameters(p0, p1);
  py::array_t<float> out(shape);
  float* values = out.mutable_data();
  const int64_t numel = out.size();
  {
    py::gil_scoped_release release;
    FLEXKERN_BEST(fill_field)(source, values, 0, numel);
  }
  return out;
}

static py::array_t<float> exp2_array(py::array_t<float, py::array::c_style | py::array::forcecast> x) {
  py::array_t<float> y(x.request().shape);
  FLEXKERN_BEST(exp2_nonpositive)(x.data(), y.mutable_data(), x.size());
  return y;
}

static py::dict kinds() {
  py::dict values;
#define FLEXKERN_KIND(name, python_name, number) values[#python_name] = static_cast<int>(Kind::name);
  FLEXKERN_KINDS(FLEXKERN_KIND)
#undef FLEXKERN_KIND
  return values;
}

PYBIND11_MODULE(_core, module) {
  module.doc() = "Build information of flexkern, and its procedural fields as NumPy arrays (no torch needed).";
  module.def("build_info", &build_info, "Compilers, GPU architectures, and the CPU instruction set in use.");
  direct::define(module);
  module.def("kinds", &kinds, "The numbers of flexkern.fields.Kind as the kernels know them.");
  module.def("field", &field, py::arg("shape"), py::arg("kind"), py::arg("seed"), py::arg("stream"),
             py::arg("offset"), py::arg("purpose"), py::arg("p0"), py::arg("p1"),
             "A procedural field as a float32 array; the arguments are those of flexkern.Field.");
  module.def("exp2_nonpositive", &exp2_array, py::arg("x"), "2**x for x <= 0, as the CPU gate computes it.");
}

}  // namespace flexkern
