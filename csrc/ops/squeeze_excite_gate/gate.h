// The two layers of squeeze-excite on [images][channels], for the bindings of both ops.
#pragma once
#include "conv_arguments.h"

namespace mnv3_fast {

// fc1_weight, fc1_bias?, fc2_weight, fc2_bias? from argument `first` on, then activation, gate, slope.
class GateArguments {
 public:
  GateArguments(const char* op, Arguments& args, std::size_t first, int64_t channels);
  // gate[n, :] = gate(fc2(act(fc1(means[n, :])))); all dense.
  void run(int64_t images, const float* means, float* gate, Carver& carver) const;

 private:
  const Tensor &fc1_weight_, &fc1_bias_, &fc2_weight_, &fc2_bias_;
  int64_t channels_, squeeze_;
  int activation_, gate_;
  float slope_;
};

}  // namespace mnv3_fast
