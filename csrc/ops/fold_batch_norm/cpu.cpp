// BatchNorm folded into the conv before it, in double: weight[o] *= s[o], bias[o] = (bias[o] - mean[o]) s[o] + beta[o],
// s = gamma / sqrt(var + eps). Bound by memory. See mnv3_fast/ops/fold_batch_norm/README.md.
#include "kernels.h"

namespace mnv3_fast {
namespace MNV3_ISA {

void fold_batch_norm(const FoldBatchNorm& a) {
  record_variant(kFoldBatchNorm, kThisIsa);
  for (int64_t o = 0; o < a.channels; o++) {
    const double gamma = a.bn_weight ? a.bn_weight[o] : 1, beta = a.bn_bias ? a.bn_bias[o] : 0;
    const double scale = a.bn_var ? gamma / __builtin_sqrt(double(a.bn_var[o]) + a.eps) : gamma;
    const double bias = a.bias ? a.bias[o] : 0, mean = a.bn_mean ? a.bn_mean[o] : 0;
    a.folded_bias[o] = float((bias - mean) * scale + beta);
    const float* in = a.weight + o * a.per_channel;
    float* out = a.folded_weight + o * a.per_channel;
    for (int64_t i = 0; i < a.per_channel; i++) out[i] = float(in[i] * scale);
  }
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
