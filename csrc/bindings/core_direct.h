// The part of the module _core that calls operators.
#pragma once

#include "python.h"

namespace flexkern::direct {

PyObject* know_torch(PyObject* module, PyObject* arguments);
PyObject* make(PyObject* module, PyObject* arguments);

}  // namespace flexkern::direct
