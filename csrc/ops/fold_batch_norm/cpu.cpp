// BatchNorm folded into the conv before it, in double: weight[o] *= s[o], bias[o] = (bias[o] - mean[o]) s[o] + beta[o],
// s = gamma / sqrt(var + eps); on the way the weight may be packed into panels. Bound by the stores of that
// transposition. See mnv3_fast/ops/fold_batch_norm/README.md.
#include "kernels.h"
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

constexpr int64_t kBlock = 32;  // values of a row at a time: 16 rows of them fill 2 KiB of a panel, in L1

// Sixteen rows (fewer in a last panel) into one panel [per_channel][16], or eight and fewer by pairs.
void pack_panel(const FoldBatchNorm& a, int64_t first, const double* scale) {
  const int64_t rows = a.channels - first < kPanel ? a.channels - first : kPanel;
  float* panel = a.folded_weight + first * a.per_channel;
  const bool pairs = a.packing == kPointwisePanels && rows <= kPanel / 2;
  if (rows < kPanel)
    __builtin_memset(panel, 0, (pairs ? 8 * round_up(a.per_channel, 2) : kPanel * a.per_channel) * sizeof(float));
  float scaled[kBlock];
  for (int64_t k = 0; k < a.per_channel; k += kBlock) {
    const int64_t count = a.per_channel - k < kBlock ? a.per_channel - k : kBlock;
    for (int64_t i = 0; i < rows; i++) {
      const float* in = a.weight + (first + i) * a.per_channel + k;
      for (int64_t j = 0; j < count; j++) scaled[j] = float(in[j] * scale[i]);
      float* out = pairs ? panel + k * 8 + 2 * i : panel + k * kPanel + i;  // blocks begin with an even k
      if (pairs)
        for (int64_t j = 0; j < count; j++) out[j / 2 * kPanel + j % 2] = scaled[j];
      else
        for (int64_t j = 0; j < count; j++) out[j * kPanel] = scaled[j];
    }
  }
}

}  // namespace

void fold_batch_norm(const FoldBatchNorm& a) {
  record_variant(kFoldBatchNorm, kThisIsa);
  double scales[kPanel];
  for (int64_t o = 0; o < a.channels; o++) {
    const double gamma = a.bn_weight ? a.bn_weight[o] : 1, beta = a.bn_bias ? a.bn_bias[o] : 0;
    const double scale = a.bn_var ? gamma / __builtin_sqrt(double(a.bn_var[o]) + a.eps) : gamma;
    const double bias = a.bias ? a.bias[o] : 0, mean = a.bn_mean ? a.bn_mean[o] : 0;
    a.folded_bias[o] = float((bias - mean) * scale + beta);
    scales[o % kPanel] = scale;
    if (a.packing != kDense) {
      if (o % kPanel == kPanel - 1 || o == a.channels - 1) pack_panel(a, o / kPanel * kPanel, scales);
      continue;
    }
    const float* in = a.weight + o * a.per_channel;
    float* out = a.folded_weight + o * a.per_channel;
    for (int64_t i = 0; i < a.per_channel; i++) out[i] = float(in[i] * scale);
  }
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
