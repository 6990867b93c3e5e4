// torch.ops.mnv3_fast.fold_batch_norm(weight, bias?, bn_weight?, bn_bias?, bn_mean, bn_var, eps) -> (weight, bias)
#include "conv_arguments.h"

#include <algorithm>

namespace mnv3_fast {
namespace {

void fold_batch_norm(StableIValue* stack, uint64_t, uint64_t) {
  Arguments args(stack, "TtttTTf");
  const ConvArguments conv("fold_batch_norm", args, 0);
  std::vector<int64_t> sizes, strides;
  int64_t stride = conv.weight().numel();
  for (int64_t i = 0; i < conv.weight().dim(); i++) {
    sizes.push_back(conv.weight().size(i));
    stride /= std::max<int64_t>(1, sizes.back());
    strides.push_back(std::max<int64_t>(1, stride));
  }
  Tensor weight = empty_float32(sizes, strides), bias = empty_float32({conv.outputs()}, {1});
  with_memory([&](Carver& carver) {
    const PackedConv folded = conv.fold(carver, kDense);
    if (!folded.weight) return;
    std::copy(folded.weight, folded.weight + weight.numel(), weight.data());
    std::copy(folded.bias, folded.bias + conv.outputs(), bias.data());
  });
  set_result(stack, 0, std::move(weight));
  set_result(stack, 1, std::move(bias));
}

const RegisterCpu registration("fold_batch_norm", fold_batch_norm);

}  // namespace
}  // namespace mnv3_fast
