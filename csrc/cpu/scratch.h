// Memory that a thread keeps between calls: no malloc in the kernels' way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace fastmaml {

// A buffer that only grows. Each Tag is another buffer, so that two can be in use at once.
template <class Tag, class S>
S* scratch(int64_t count) {
  struct Buffer {
    void* data = nullptr;
    std::size_t bytes = 0;
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  };
  static thread_local Buffer buffer;
  const std::size_t wanted = static_cast<std::size_t>(count) * sizeof(S);
  if (wanted > buffer.bytes) {
    ::operator delete(buffer.data, std::align_val_t(64));
    buffer.data = nullptr;
    buffer.bytes = 0;
    buffer.data = ::operator new(wanted, std::align_val_t(64));
    buffer.bytes = wanted;
  }
  return static_cast<S*>(buffer.data);
}

}  // namespace fastmaml
