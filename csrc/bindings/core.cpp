// flexkern._core: direct calls of operators, and procedural fields as NumPy arrays without torch.
#include <cstdint>
#include <string>

#include "core_direct.h"
#include "cpu/dispatch.h"
#include "flexkern/field.h"
#include "python.h"

FLEXKERN_KERNEL(void fill_field(const Source& source, float* out, int64_t begin, int64_t end);
                // For the test of its accuracy.
                void exp2_nonpositive(const float* x, float* y, int64_t n);)

namespace flexkern {

namespace {

using python::guarded;
using python::must;
using python::Owned;

// An array of float32: its memory, which it keeps, and how many values that has.
struct Array {
  Owned object;
  float* values;
  int64_t numel;
};

// numpy.`function`(argument, "float32")
Array array_of(const char* function, PyObject* argument) {
  const Owned numpy(must(PyImport_ImportModule("numpy")));
  Owned array(must(PyObject_CallMethod(numpy.get(), function, "Os", argument, "float32")));
  const Owned memory(must(PyObject_GetAttrString(array.get(), "ctypes")));
  const Owned address(must(PyObject_GetAttrString(memory.get(), "data")));
  const Owned size(must(PyObject_GetAttrString(array.get(), "size")));
  auto* values = static_cast<float*>(PyLong_AsVoidPtr(address.get()));
  const int64_t numel = PyLong_AsLongLong(size.get());
  if (PyErr_Occurred() != nullptr) throw python::RaisedError();
  return {std::move(array), values, numel};
}

uint64_t natural(PyObject* value, const char* name, uint64_t most) {
  const uint64_t number = PyLong_AsUnsignedLongLong(value);
  if (PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) throw python::RaisedError();
    PyErr_Clear();
  } else if (number <= most) {
    return number;
  }
  throw std::invalid_argument(std::string(name) + " must be 0 .. " + std::to_string(most));
}

PyObject* field(PyObject*, PyObject* arguments, PyObject* by_name) {
  return guarded([&]() -> PyObject* {
    static const char* names[] = {"shape", "kind", "seed", "stream", "offset", "purpose", "p0", "p1", nullptr};
    PyObject *shape, *seed, *stream, *offset, *purpose;
    int kind;
    double p0, p1;
    if (PyArg_ParseTupleAndKeywords(arguments, by_name, "OiOOOOdd", const_cast<char**>(names), &shape, &kind, &seed,
                                    &stream, &offset, &purpose, &p0, &p1) == 0)
      return nullptr;
    if (!is_computed(kind))
      throw std::invalid_argument("kind must be 1 .. " + std::to_string(FLEXKERN_LAST_KIND) + ", got " +
                                  std::to_string(kind));
    Source source;
    source.kind = static_cast<Kind>(kind);
    source.seed = natural(seed, "seed", UINT64_MAX);
    source.stream = static_cast<uint32_t>(natural(stream, "stream", UINT32_MAX));
    source.offset = natural(offset, "offset", UINT64_MAX);
    source.purpose = static_cast<uint32_t>(natural(purpose, "purpose", UINT32_MAX));
    source.set_parameters(p0, p1);
    const auto fill = FLEXKERN_BEST(fill_field);
    Array out = array_of("empty", shape);
    PyThreadState* state = PyEval_SaveThread();
    fill(source, out.values, 0, out.numel);
    PyEval_RestoreThread(state);
    return out.object.release();
  });
}

PyObject* exp2_nonpositive(PyObject*, PyObject* x) {
  return guarded([&] {
    const Array from = array_of("ascontiguousarray", x);
    const Owned shape(must(PyObject_GetAttrString(from.object.get(), "shape")));
    Array to = array_of("empty", shape.get());
    FLEXKERN_BEST(exp2_nonpositive)(from.values, to.values, from.numel);
    return to.object.release();
  });
}

PyObject* kinds(PyObject*, PyObject*) {
  return guarded([] {
    Owned values(must(PyDict_New()));
    const auto add = [&](const char* name, Kind kind) {
      const Owned number(must(PyLong_FromLong(static_cast<long>(kind))));
      if (PyDict_SetItemString(values.get(), name, number.get()) != 0) throw python::RaisedError();
    };
#define FLEXKERN_KIND(name, python_name, number) add(#python_name, Kind::name);
    FLEXKERN_KINDS(FLEXKERN_KIND)
#undef FLEXKERN_KIND
    return values.release();
  });
}

PyMethodDef methods[] = {
    {"know_torch", &direct::know_torch, METH_VARARGS,
     "What direct calls need of torch: see flexkern/ops/direct.py."},
    {"direct", &direct::make, METH_VARARGS,
     "direct(function, arguments, defaults): an operator as a function that calls it past the dispatcher."},
    {"kinds", &kinds, METH_NOARGS, "The numbers of flexkern.fields.Kind as the kernels know them."},
    {"field", python::as_method(&field), METH_VARARGS | METH_KEYWORDS,
     "field(shape, kind, seed, stream, offset, purpose, p0, p1): a procedural field as a float32 array; the "
     "arguments are those of flexkern.Field."},
    {"exp2_nonpositive", &exp2_nonpositive, METH_O, "2**x for x <= 0, as the CPU gate computes it."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_core",
    "Direct calls of flexkern's operators, and its procedural fields as NumPy arrays (no torch needed).",
    -1,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr};

}  // namespace

}  // namespace flexkern

PyMODINIT_FUNC PyInit__core();
PyMODINIT_FUNC PyInit__core() { return PyModule_Create(&flexkern::definition); }
