// Stands in for LibTorch in the test driver: the functions of csrc/torch_shim.h over plain memory, so that the bindings
// and the engine run as they are where there is no torch.
#pragma once
#include <string>
#include <vector>

#include "tensor.h"

// Its address first: csrc/watch.cpp fetches what a handle's first word points to.
struct AtenTensorOpaque {
  void* data = nullptr;
  int32_t dtype = 0;
  std::vector<int64_t> sizes, strides;
  std::vector<char> memory;  // with a margin on both sides, full of NaN

  AtenTensorOpaque(int32_t tensor_dtype, std::vector<int64_t> tensor_sizes, std::vector<int64_t> tensor_strides);
  AtenTensorOpaque(const AtenTensorOpaque& other);
  ~AtenTensorOpaque();
  int64_t numel() const;
  int64_t bytes() const;  // from the first to the last element
  bool margins_intact() const;
};

namespace mnv3_fast {

// The kernel that was registered under a name, or null; the names of all.
BoxedKernel find_kernel(const std::string& name);
StableListHandle new_list(std::vector<StableIValue> items);
// What torch_get_num_threads says, and how many threads torch_parallel_for uses at once.
void set_threads(int threads);
// Handles that nobody has deleted.
int64_t live_tensors();

}  // namespace mnv3_fast
