// What a kernel allocates while a program calls it: its results may go where the program wants them.
#pragma once

#include <cstdint>
#include <vector>

#include "../tensors.h"

namespace fastmaml {

// Where one allocation of a call goes: so many elements of a dtype, from there on in the program's memory.
struct Place {
  int64_t offset = -1;  // in elements; negative for what is allocated as usual
  int64_t elements = 0;
  int32_t dtype = 0;
};

struct Allocations {
  // In the order in which the kernel allocates; nothing while that is being seen.
  const std::vector<Place>* places = nullptr;
  AtenTensorHandle floats = nullptr, doubles = nullptr;  // the program's memory
  size_t next = 0;
  std::vector<const void*> seen;
};

// Those of this thread's call; null outside of programs.
inline thread_local Allocations* allocations = nullptr;

// A tensor in its place; nothing where it has none.
inline AtenTensorHandle placed(Allocations& of, const Sizes& sizes, const Sizes& strides, int32_t dtype) {
  const size_t i = of.next++;
  if (i >= of.places->size()) return nullptr;
  const Place& place = (*of.places)[i];
  if (place.offset < 0 || place.dtype != dtype) return nullptr;
  int64_t elements = 1;
  for (const int64_t n : sizes) elements *= n;
  if (elements != place.elements) return nullptr;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      dtype == aoti_torch_dtype_float64() ? of.doubles : of.floats, static_cast<int64_t>(sizes.size()),
      sizes.data(), strides.data(), place.offset, &handle));
  return handle;
}

}  // namespace fastmaml
