// Programs in the module fastmaml._C; torch.ops.fastmaml.replay runs them.
#pragma once

#include <pybind11/pybind11.h>

namespace fastmaml::program {

void bind(pybind11::module_& module);

}  // namespace fastmaml::program
