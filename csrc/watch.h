// Tensors that packed weights were made of, and what they were then. Float32 on the CPU, at most four dimensions.
#pragma once
#include <cstdint>
#include <vector>

#include "torch_shim.h"

namespace mnv3_fast {

// Owns the tensors of a list that came as an argument.
class Handles {
 public:
  explicit Handles(StableListHandle list);  // takes it
  ~Handles();
  Handles(Handles&& other) noexcept { handles_.swap(other.handles_); }
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  // Throws unless all are of the kind above, with memory of their size.
  void check_memory() const;
  // A hash of memory, layout and values (see fingerprint.h) of all. Throws as soon as one has lost its memory.
  uint64_t state() const;

 private:
  std::vector<AtenTensorHandle> handles_;
};

// Holds tensors, so that what is done to one past Python is seen, too.
class Watch {
 public:
  explicit Watch(Handles handles);
  bool unchanged() const;

 private:
  Handles handles_;
  uint64_t state_;
};

}  // namespace mnv3_fast
