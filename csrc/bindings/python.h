// What the module _core uses of Python: its limited API as of 3.10, so that one module serves every later one.
#pragma once

#include <Python.h>

#include <exception>
#include <memory>
#include <new>
#include <stdexcept>

namespace flexkern::python {

struct Drop {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Drop>;

// Python has an error set, with which the call ends.
struct RaisedError {};

inline PyObject* must(PyObject* result) {
  if (result == nullptr) throw RaisedError();
  return result;
}

inline PyObject* call(PyObject* function, PyObject* argument) {
  return PyObject_CallFunctionObjArgs(function, argument, nullptr);
}

// A function of the module: an exception of C++ becomes one of Python.
template <typename Body>
PyObject* guarded(Body body) {
  try {
    return body();
  } catch (const RaisedError&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <typename Function>
PyCFunction as_method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace flexkern::python
