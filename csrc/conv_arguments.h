// What the convolutions' bindings share: the arguments of a conv with an optional bias and BatchNorm, folded and packed
// for the kernels on every call, so that nothing can be stale.
#pragma once
#include "arena.h"
#include "kernels.h"
#include "tensor.h"

namespace mnv3_fast {

// Checks that a tensor is float32 of the given sizes; -1 matches any.
void expect(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& sizes);

// Copies a tensor of up to 4 dimensions with any strides into dense memory.
void copy_dense(const Tensor& tensor, float* output);

// [N][K] -> the panels of a pointwise conv; writes N zeros to the bias.
void pack_pointwise(const float* weight, int64_t outputs, int64_t inputs, float* packed, float* padded_bias);

struct PackedConv {
  const float *weight, *bias;
};

// Seven arguments from `first` on: weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps.
class ConvArguments {
 public:
  ConvArguments(const char* op, Arguments& args, std::size_t first);
  const Tensor& weight() const { return weight_; }
  int64_t outputs() const { return weight_.size(0); }
  int64_t inputs() const { return weight_.numel() / (outputs() ? outputs() : 1); }  // an output's weights
  bool has_batch_norm() const { return static_cast<bool>(mean_); }
  // BatchNorm folded and packed; memory from the carver, which may have none yet (then sizes only).
  PackedConv fold(Carver& carver, Packing packing) const;

 private:
  const Tensor &weight_, &bias_, &bn_weight_, &bn_bias_, &mean_, &variance_;
  double eps_;
};

// Eight integers from `first` on, in the order of the schemas: stride_h, stride_w, pad left, right, top, bottom (or all
// four kSame), dilation_h, dilation_w. With the padding that the input gets.
Window window_arguments(const char* op, const Arguments& args, std::size_t first, const Tensor& input,
                        const Tensor& weight);
int activation_argument(const char* op, int64_t value);

// Runs `use(carver)` twice: to measure the memory it takes, then with memory of the calling thread's arena.
template <class F>
auto with_memory(const F& use) {
  Carver sizes;
  use(sizes);
  Carver memory(Arena::get(sizes.used()));
  return use(memory);
}

}  // namespace mnv3_fast
