// _core.direct: a function of Python that calls an operator past the dispatcher (direct.h). Where anything is
// unusual it does nothing and returns NotImplemented: other types than a schema's own, a subclass of Tensor, a
// negative view, an inference tensor that would be written, a mode that looks at calls. It needs no torch: what it
// asks of torch are functions of Python that it is given.
#include "core_direct.h"

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "direct.h"

namespace flexkern::direct {

namespace {

using python::guarded;
using python::must;
using python::Owned;

// One argument as its schema has it.
struct Declared {
  char type;  // T a tensor, L a list of tensors, I integers, N numbers, i an integer, n a number, b a bool
  bool optional;
  bool written;
  std::vector<size_t> if_given;  // written only where these arguments are given, and not false
};

struct Call {
  Function function;
  std::vector<Declared> arguments;
  Owned defaults;  // of the last ones, a tuple
  size_t defaulted;
};

// Of torch; set once and never freed.
struct Torch {
  PyObject *tensor, *parameter, *is_neg, *is_inference, *increment_version, *to_handles, *from_handles;
  std::vector<PyObject*> modes;  // functions, each of which says whether a mode is on that looks at calls
  Elements elements;
};
Torch torch;

PyObject* at(PyObject* tuple, size_t i) { return PyTuple_GetItem(tuple, static_cast<Py_ssize_t>(i)); }

// Whether the result of a question is false; an exception says no.
bool is_false(PyObject* result) {
  const bool no = result != nullptr && PyObject_IsTrue(result) == 0;
  Py_XDECREF(result);
  if (PyErr_Occurred() != nullptr) PyErr_Clear();
  return no;
}

bool no_mode_is_on() {
  for (PyObject* mode : torch.modes) {
    if (!is_false(PyObject_CallNoArgs(mode))) return false;
  }
  return true;
}

// The arguments of one call as the operator takes them.
class Arguments {
 public:
  // False, with no error set: they are unusual.
  bool read(const Call& call, PyObject* const* given, size_t count) {
    const size_t all = call.arguments.size(), defaults = call.defaulted;
    if (count > all || all - count > defaults) return false;
    for (size_t i = 0; i < all; ++i) {
      PyObject* value = i < count ? given[i] : at(call.defaults.get(), i + defaults - all);
      const Declared& declared = call.arguments[i];
      if (value == Py_None) {
        if (!declared.optional) return false;
        continue;
      }
      passed_[i].given = true;
      if (!read_one(passed_[i], declared, value)) return false;
    }
    return to_handles(call.arguments);
  }

  const Passed* passed() const { return passed_.data(); }
  int64_t elements() const { return torch.elements(handles_.data(), handles_.size()); }

  // Tells autograd what was written; false: an error is set.
  bool increment_versions(const Call& call) const {
    PyObject* written = PyList_New(0);
    if (written == nullptr) return false;
    size_t next = 0;
    bool ok = true;
    for (size_t i = 0; i < call.arguments.size(); ++i) {
      const Declared& declared = call.arguments[i];
      if (!passed_[i].given || (declared.type != 'T' && declared.type != 'L')) continue;
      const size_t end = next + passed_[i].count;
      if (!is_written(call, declared)) next = end;
      for (; next < end; ++next) ok = ok && PyList_Append(written, tensors_[next]) == 0;
    }
    if (ok && PyList_Size(written) > 0) {
      PyObject* none = python::call(torch.increment_version, written);
      ok = none != nullptr;
      Py_XDECREF(none);
    }
    Py_DECREF(written);
    return ok;
  }

 private:
  bool is_written(const Call& call, const Declared& declared) const {
    if (!declared.written) return false;
    for (const size_t i : declared.if_given) {
      if (!passed_[i].given || (call.arguments[i].type == 'b' && passed_[i].integer == 0)) return false;
    }
    return true;
  }

  bool read_one(Passed& passed, const Declared& declared, PyObject* value) {
    switch (declared.type) {
      case 'T': passed.count = 1; return add(value, declared.written);
      case 'b': passed.integer = value == Py_True; return PyBool_Check(value);
      case 'n': return number(value, &passed.number);
      case 'i': return integer(value, &passed.integer);
      default: break;
    }
    const bool is_list = PyList_CheckExact(value);
    if (!is_list && !PyTuple_CheckExact(value)) return false;
    const auto each = [&](const auto& read_item) {
      for (size_t i = 0; i < passed.count; ++i) {
        // (A list may have become shorter, by what was called for the items before.)
        PyObject* item = is_list ? PyList_GetItem(value, static_cast<Py_ssize_t>(i)) : at(value, i);
        if (item == nullptr) return !failed();
        if (!read_item(item, i)) return false;
      }
      return true;
    };
    passed.count = static_cast<size_t>(is_list ? PyList_Size(value) : PyTuple_Size(value));
    if (declared.type == 'L') return each([&](PyObject* item, size_t) { return add(item, declared.written); });
    if (declared.type == 'I') {  // an operator has one such list
      integers_.resize(passed.count);
      passed.integers = integers_.data();
      return each([&](PyObject* item, size_t i) { return integer(item, &integers_[i]); });
    }
    numbers_.resize(passed.count);
    passed.numbers = numbers_.data();
    return each([&](PyObject* item, size_t i) { return number(item, &numbers_[i]); });
  }

  static bool number(PyObject* value, double* to) {
    if (PyFloat_CheckExact(value)) {
      *to = PyFloat_AsDouble(value);
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

  bool add(PyObject* value, bool written) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(value));
    if (type != torch.tensor && type != torch.parameter) return false;
    // A negative view has the opposite of what its memory holds.
    if (!is_false(python::call(torch.is_neg, value))) return false;
    if (written && !is_false(python::call(torch.is_inference, value))) return false;
    tensors_.push_back(value);
    return true;
  }

  bool to_handles(const std::vector<Declared>& arguments) {
    if (tensors_.empty()) return true;
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(tensors_.size()));
    if (list == nullptr) return !failed();
    kept_.reset(list);  // while other threads run, which may empty a list
    for (size_t i = 0; i < tensors_.size(); ++i) {
      Py_INCREF(tensors_[i]);
      PyList_SetItem(list, static_cast<Py_ssize_t>(i), tensors_[i]);
    }
    PyObject* capsules = python::call(torch.to_handles, list);
    if (capsules == nullptr) return !failed();
    handles_.resize(tensors_.size());
    for (size_t i = 0; i < handles_.size(); ++i) {
      handles_[i] = PyCapsule_GetPointer(PyList_GetItem(capsules, static_cast<Py_ssize_t>(i)), nullptr);
    }
    Py_DECREF(capsules);
    void** next = handles_.data();
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!passed_[i].given || (arguments[i].type != 'T' && arguments[i].type != 'L')) continue;
      passed_[i].handles = next;
      next += passed_[i].count;
    }
    return true;
  }

  std::array<Passed, kMostArguments> passed_{};
  Owned kept_;
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
    if (capsule != nullptr) PyTuple_SetItem(capsules, static_cast<Py_ssize_t>(i), capsule);
  }
  if (capsules == nullptr) return nullptr;
  PyObject* result = nullptr;
  // (Torch's function for a single one copies it, and does not let the handle go.)
  if (PyObject* list = python::call(torch.from_handles, capsules)) {
    result = count == 1 ? Py_NewRef(PyList_GetItem(list, 0)) : PyList_AsTuple(list);
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
  // Other threads of Python may run meanwhile, where it is worth while: to let them takes 0.5 microseconds, as
  // torch takes the lock again for each tensor that is let go.
  constexpr int64_t kSmall = 1 << 14;
  PyThreadState* state = arguments.elements() > kSmall ? PyEval_SaveThread() : nullptr;
  try {
    count = call.function(arguments.passed(), results.data());
  } catch (const std::bad_alloc&) {
    end = kNoMemory;
  } catch (const std::exception& error) {
    end = kRefused;
    why = error.what();
  }
  if (state != nullptr) PyEval_RestoreThread(state);
  if (end == kDone && !arguments.increment_versions(call)) return nullptr;
  if (end == kDone) return to_python(results.data(), count);
  if (end == kNoMemory) return PyErr_NoMemory();
  PyErr_SetString(PyExc_RuntimeError, why.c_str());
  return nullptr;
}

PyObject* call_of_python(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  const Call& call = *static_cast<const Call*>(PyCapsule_GetPointer(self, nullptr));
  Arguments arguments;
  if (no_mode_is_on() && arguments.read(call, given, static_cast<size_t>(count))) return run(call, arguments);
  Py_RETURN_NOTIMPLEMENTED;
}

PyMethodDef method = {"direct", python::as_method(&call_of_python), METH_FASTCALL,
                      "An operator, past the dispatcher; NotImplemented where anything is unusual."};

void drop_call(PyObject* capsule) { delete static_cast<Call*>(PyCapsule_GetPointer(capsule, nullptr)); }

// (type, optional, written, places of the arguments with which it is written)
Declared declared_by(PyObject* row) {
  const char* type = nullptr;
  int optional = 0, written = 0;
  PyObject* places = nullptr;
  if (PyArg_ParseTuple(row, "sppO", &type, &optional, &written, &places) == 0) throw python::RaisedError();
  Declared declared{type[0], optional != 0, written != 0, {}};
  const Py_ssize_t count = PyList_Size(places);
  for (Py_ssize_t i = 0; i < count; ++i) declared.if_given.push_back(PyLong_AsSize_t(PyList_GetItem(places, i)));
  if (PyErr_Occurred() != nullptr) throw python::RaisedError();
  return declared;
}

}  // namespace

PyObject* make(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    unsigned long long function = 0;
    PyObject *rows = nullptr, *defaults = nullptr;
    if (PyArg_ParseTuple(arguments, "KOO", &function, &rows, &defaults) == 0) return nullptr;
    const Py_ssize_t count = PyList_Size(rows), defaulted = PyTuple_Size(defaults);
    if (count < 0 || defaulted < 0) return nullptr;
    if (static_cast<size_t>(count) > kMostArguments || defaulted > count)
      throw std::invalid_argument("an operator of " + std::to_string(count) +
                                  " arguments cannot be called directly");
    auto call = std::make_unique<Call>();
    call->function = reinterpret_cast<Function>(static_cast<uintptr_t>(function));
    for (Py_ssize_t i = 0; i < count; ++i) call->arguments.push_back(declared_by(PyList_GetItem(rows, i)));
    call->defaults.reset(Py_NewRef(defaults));
    call->defaulted = static_cast<size_t>(defaulted);
    const Owned self(must(PyCapsule_New(call.get(), nullptr, &drop_call)));
    call.release();
    return PyCFunction_NewEx(&method, self.get(), nullptr);
  });
}

PyObject* know_torch(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    Torch known{};
    PyObject* modes = nullptr;
    unsigned long long elements = 0;
    if (PyArg_ParseTuple(arguments, "OOOOOOOOK", &known.tensor, &known.parameter, &known.is_neg,
                         &known.is_inference, &known.increment_version, &known.to_handles, &known.from_handles,
                         &modes, &elements) == 0)
      return nullptr;
    known.elements = reinterpret_cast<Elements>(static_cast<uintptr_t>(elements));
    const Py_ssize_t count = PyList_Size(modes);
    if (count < 0) return nullptr;
    for (Py_ssize_t i = 0; i < count; ++i) known.modes.push_back(PyList_GetItem(modes, i));
    for (PyObject* kept : {known.tensor, known.parameter, known.is_neg, known.is_inference, known.increment_version,
                           known.to_handles, known.from_handles})
      Py_INCREF(kept);
    for (PyObject* kept : known.modes) Py_INCREF(kept);
    torch = std::move(known);
    Py_RETURN_NONE;
  });
}

}  // namespace flexkern::direct
