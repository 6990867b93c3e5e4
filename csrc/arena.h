// Scratch memory that a calling thread keeps: it grows to the largest size asked for and is freed with the thread, so a
// pass allocates nothing after the first call at a size, and several Python threads never share it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "pages.h"

namespace mnv3_fast {

class Arena {
 public:
  // `floats` floats, aligned to a cache line, contents undefined; valid until the next call on this thread.
  static float* get(int64_t floats) {
    Arena& arena = mine();
    if (floats > arena.capacity_) arena.grow(floats);
    return arena.data_;
  }
  // What this thread keeps, in bytes.
  static int64_t size() { return mine().capacity_ * static_cast<int64_t>(sizeof(float)); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

 private:
  Arena() = default;
  ~Arena() { std::free(data_); }
  static Arena& mine() {
    static thread_local Arena arena;
    return arena;
  }
  void grow(int64_t floats) {
    const std::size_t wanted = static_cast<std::size_t>(floats) * sizeof(float);
    const std::size_t page = wanted > kHugePage / 2 ? kHugePage : 4096, bytes = (wanted + page - 1) / page * page;
    std::free(data_);
    capacity_ = 0;
    data_ = static_cast<float*>(std::aligned_alloc(page, bytes));
    if (!data_) throw std::bad_alloc();
    prefer_huge_pages(data_, bytes);
    capacity_ = static_cast<int64_t>(bytes / sizeof(float));
  }
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Hands out parts of one block of scratch memory; with no block it only adds up the sizes.
class Carver {
 public:
  explicit Carver(float* data = nullptr) : data_(data) {}
  float* take(int64_t floats) {
    float* part = data_ ? data_ + used_ : nullptr;
    used_ += (floats + 15) / 16 * 16;
    return part;
  }
  int64_t used() const { return used_; }

 private:
  float* data_;
  int64_t used_ = 0;
};

}  // namespace mnv3_fast
