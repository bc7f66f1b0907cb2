// Memory of one task, aligned for vectors; not initialised.
#pragma once

#include <c10/core/impl/alloc_cpu.h>

#include <cstdint>

namespace dogo_fast {

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<T*>(c10::alloc_cpu(size * sizeof(T)))) {}
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { c10::free_cpu(data_); }

  T* data() const { return data_; }
  T& operator[](int64_t index) const { return data_[index]; }

 private:
  T* data_;
};

}  // namespace dogo_fast
