// Our own CPU kernels by name, for programs that call them without the dispatcher.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

namespace fastmaml {

using Boxed = void (*)(StableIValue* stack, uint64_t arguments, uint64_t results);

// The kernel of this op; nothing where there is none.
Boxed find_kernel(const std::string& name);

// Returns true: it initialises a static.
bool remember_kernel(const char* name, Boxed kernel);

}  // namespace fastmaml

// In a STABLE_TORCH_LIBRARY_IMPL block: the op's CPU kernel is this function of the same name.
#define FM_CPU_KERNEL(m, name)                   \
  m.impl(#name, TORCH_BOX(&::fastmaml::name));   \
  ::fastmaml::remember_kernel(#name, TORCH_BOX(&::fastmaml::name))
