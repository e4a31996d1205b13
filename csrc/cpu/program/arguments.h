// What the calls of a program are given.
#pragma once

#include <cstdint>
#include <vector>

#include "../../tensors.h"

namespace fastmaml::program {

// An argument of a call. Which of the members counts is up to the type in the op's schema.
struct Argument {
  enum class Type {
    none, tensor, tensor_or_none, tensors, integer, number, boolean, integers, booleans, dtype, memory_format
  };
  Type type = Type::none;
  bool optional = false;  // the schema says so: the argument is handed over as an optional one
  int64_t value = -1;     // number of a tensor
  int64_t integer = 0;
  double number = 0;
  std::vector<int64_t> list;
};

// Those of a run, by number: what is not there yet, or is over, is nothing.
using Values = std::vector<OptionalTensor>;

inline const Tensor& known(const Values& values, int64_t number) {
  STD_TORCH_CHECK(values[number].has_value(), "value ", number, " of a program is not there");
  return *values[number];
}

}  // namespace fastmaml::program
