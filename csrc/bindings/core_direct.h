// The part of the module _core that calls operators.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace flexkern::direct {

void define(py::module_& module);

}  // namespace flexkern::direct
