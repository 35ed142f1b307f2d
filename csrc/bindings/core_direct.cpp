// _core.direct: a function of Python that calls an operator past the dispatcher (direct.h), or the dispatcher,
// where anything is unusual: other types than a schema's own, a subclass of Tensor, a mode that looks at calls. It
// needs no torch: what it asks of torch are functions of Python that it is given.
#include "core_direct.h"

#include <array>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "direct.h"

namespace flexkern::direct {

namespace {

// What an operator's arguments are, in the order of its schema: T a tensor, L a list of tensors, I integers,
// N numbers, i an integer, n a number, b a bool; and whether each may be None.
struct Call {
  Function function;
  std::string types;
  std::vector<bool> optional;
  py::tuple defaults;  // of the last ones
  py::object fallback;
};

// Of torch; set once and never freed.
struct Torch {
  PyObject *tensor, *parameter, *is_neg, *to_handles, *from_handle, *from_handles;
  std::vector<PyObject*> modes;  // functions, each of which says whether a mode is on that looks at calls
};
Torch torch;

bool is_usual() {
  for (PyObject* mode : torch.modes) {
    PyObject* result = PyObject_CallNoArgs(mode);
    if (result == nullptr) {
      PyErr_Clear();
      return false;
    }
    const int is_on = PyObject_IsTrue(result);
    Py_DECREF(result);
    if (is_on != 0) return false;
  }
  return true;
}

// The arguments of one call as the operator takes them.
class Arguments {
 public:
  // False, with no error set: they are unusual.
  bool read(const Call& call, PyObject* const* given, size_t count) {
    const size_t all = call.types.size(), defaults = call.defaults.size();
    if (count > all || all - count > defaults) return false;
    for (size_t i = 0; i < all; ++i) {
      PyObject* value = i < count ? given[i] : PyTuple_GET_ITEM(call.defaults.ptr(), i + defaults - all);
      Passed& passed = passed_[i];
      if (value == Py_None) {
        if (!call.optional[i]) return false;
        continue;
      }
      passed.given = true;
      if (!read_one(passed, call.types[i], value)) return false;
    }
    return to_handles(call.types);
  }

  // A negative view has the opposite of what its memory holds, and the dispatcher does not look for them in lists
  // that may be missing.
  bool has_negative() const { return negative_; }

  const Passed* passed() const { return passed_.data(); }

 private:
  bool read_one(Passed& passed, char type, PyObject* value) {
    switch (type) {
      case 'T': passed.count = 1; return add(value);
      case 'b': passed.integer = value == Py_True; return PyBool_Check(value);
      case 'n': return number(value, &passed.number);
      case 'i': return integer(value, &passed.integer);
      default: break;
    }
    const bool is_list = PyList_CheckExact(value);
    if (!is_list && !PyTuple_CheckExact(value)) return false;
    PyObject** items = is_list ? reinterpret_cast<PyListObject*>(value)->ob_item
                               : reinterpret_cast<PyTupleObject*>(value)->ob_item;
    passed.count = static_cast<size_t>(Py_SIZE(value));
    if (type == 'L') {
      for (size_t i = 0; i < passed.count; ++i) {
        if (!add(items[i])) return false;
      }
      return true;
    }
    if (type == 'I') {
      integers_.resize(passed.count);  // an operator has one such list
      passed.integers = integers_.data();
      for (size_t i = 0; i < passed.count; ++i) {
        if (!integer(items[i], &integers_[i])) return false;
      }
      return true;
    }
    numbers_.resize(passed.count);
    passed.numbers = numbers_.data();
    for (size_t i = 0; i < passed.count; ++i) {
      if (!number(items[i], &numbers_[i])) return false;
    }
    return true;
  }

  static bool number(PyObject* value, double* to) {
    if (PyFloat_CheckExact(value)) {
      *to = PyFloat_AS_DOUBLE(value);
      return true;
    }
    if (!PyLong_CheckExact(value)) return false;
    *to = PyLong_AsDouble(value);
    return !failed();
  }

  static bool integer(PyObject* value, int64_t* to) {
    if (!PyLong_CheckExact(value)) return false;
    *to = PyLong_AsLongLong(value);
    return !failed();
  }

  static bool failed() {
    if (PyErr_Occurred() == nullptr) return false;
    PyErr_Clear();
    return true;
  }

  // An ordinary tensor.
  bool add(PyObject* value) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(value));
    if (type != torch.tensor && type != torch.parameter) return false;
    PyObject* negative = PyObject_CallOneArg(torch.is_neg, value);
    if (negative == nullptr) {
      PyErr_Clear();
      return false;
    }
    Py_DECREF(negative);
    negative_ = negative_ || negative == Py_True;
    tensors_.push_back(value);
    return !negative_;
  }

  bool to_handles(const std::string& types) {
    if (tensors_.empty()) return true;
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(tensors_.size()));
    if (list == nullptr) return !failed();
    for (size_t i = 0; i < tensors_.size(); ++i) {
      Py_INCREF(tensors_[i]);
      PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), tensors_[i]);
    }
    PyObject* capsules = PyObject_CallOneArg(torch.to_handles, list);
    Py_DECREF(list);
    if (capsules == nullptr) return !failed();
    handles_.resize(tensors_.size());
    for (size_t i = 0; i < handles_.size(); ++i) {
      handles_[i] = PyCapsule_GetPointer(PyList_GET_ITEM(capsules, static_cast<Py_ssize_t>(i)), nullptr);
    }
    Py_DECREF(capsules);
    void** next = handles_.data();
    for (size_t i = 0; i < types.size(); ++i) {
      if (!passed_[i].given || (types[i] != 'T' && types[i] != 'L')) continue;
      passed_[i].handles = next;
      next += passed_[i].count;
    }
    return true;
  }

  bool negative_ = false;
  std::array<Passed, kMostArguments> passed_{};
  std::vector<PyObject*> tensors_;
  std::vector<void*> handles_;
  std::vector<int64_t> integers_;
  std::vector<double> numbers_;
};

PyObject* to_python(void* const* results, size_t count) {
  if (count == 0) Py_RETURN_NONE;
  PyObject* capsules = PyTuple_New(static_cast<Py_ssize_t>(count));
  for (size_t i = 0; i < count && capsules != nullptr; ++i) {
    PyObject* capsule = PyCapsule_New(results[i], nullptr, nullptr);
    if (capsule == nullptr) Py_CLEAR(capsules);
    if (capsule != nullptr) PyTuple_SET_ITEM(capsules, static_cast<Py_ssize_t>(i), capsule);
  }
  if (capsules == nullptr) return nullptr;
  PyObject* result = nullptr;
  if (count == 1) {
    result = PyObject_CallOneArg(torch.from_handle, PyTuple_GET_ITEM(capsules, 0));
  } else if (PyObject* list = PyObject_CallOneArg(torch.from_handles, capsules)) {
    result = PyList_AsTuple(list);
    Py_DECREF(list);
  }
  Py_DECREF(capsules);
  return result;
}

PyObject* run(const Call& call, const Arguments& arguments) {
  std::array<void*, kMostResults> results{};
  size_t count = 0;
  std::string why;
  enum { kDone, kNoMemory, kRefused } end = kDone;
  PyThreadState* state = PyEval_SaveThread();
  try {
    count = call.function(arguments.passed(), results.data());
  } catch (const std::bad_alloc&) {
    end = kNoMemory;
  } catch (const std::exception& error) {
    end = kRefused;
    why = error.what();
  }
  PyEval_RestoreThread(state);
  if (end == kDone) return to_python(results.data(), count);
  if (end == kNoMemory) return PyErr_NoMemory();
  PyErr_SetString(PyExc_RuntimeError, why.c_str());
  return nullptr;
}

PyObject* call_of_python(PyObject* self, PyObject* const* given, Py_ssize_t count, PyObject* names) {
  const Call& call = *static_cast<const Call*>(PyCapsule_GetPointer(self, nullptr));
  if (names == nullptr && is_usual()) {
    Arguments arguments;
    if (arguments.read(call, given, static_cast<size_t>(count))) return run(call, arguments);
    if (arguments.has_negative()) {
      PyErr_SetString(PyExc_RuntimeError, "flexkern refuses: an argument is a negative view; pass a .clone()");
      return nullptr;
    }
  }
  return PyObject_Vectorcall(call.fallback.ptr(), given, static_cast<size_t>(count), names);
}

PyMethodDef method = {"direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_of_python)),
                      METH_FASTCALL | METH_KEYWORDS, "An operator, past the dispatcher where nothing is unusual."};

py::object make(uintptr_t function, const std::string& types, std::vector<bool> optional, py::tuple defaults,
                py::object fallback) {
  if (types.size() > kMostArguments || types.size() != optional.size() || defaults.size() > types.size())
    throw py::value_error("an operator of " + std::to_string(types.size()) +
                          " arguments cannot be called directly");
  Call* call = new Call{reinterpret_cast<Function>(function), types, std::move(optional), std::move(defaults),
                        std::move(fallback)};
  const py::capsule self(call, [](void* kept) { delete static_cast<Call*>(kept); });
  return py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method, self.ptr(), nullptr));
}

void know(py::object tensor, py::object parameter, py::object is_neg, py::object to_handles, py::object from_handle,
          py::object from_handles, const std::vector<py::object>& modes) {
  torch = {tensor.release().ptr(),
           parameter.release().ptr(),
           is_neg.release().ptr(),
           to_handles.release().ptr(),
           from_handle.release().ptr(),
           from_handles.release().ptr(),
           {}};
  for (const py::object& mode : modes) torch.modes.push_back(mode.inc_ref().ptr());
}

}  // namespace

void define(py::module_& module) {
  module.def("know_torch", &know, "What direct calls need of torch: see flexkern/ops/direct.py.");
  module.def("direct", &make, py::arg("function"), py::arg("types"), py::arg("optional"), py::arg("defaults"),
             py::arg("fallback"), "An operator as a function that calls it past the dispatcher, where it can.");
}

}  // namespace flexkern::direct
