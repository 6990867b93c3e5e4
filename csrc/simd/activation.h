// Element math shared by every kernel. NaN passes through each of them, as in torch.
#pragma once
#include "kernels.h"
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

template <int L>
MNV3_INLINE Vec<L> relu(Vec<L> x) {
  return at_least<L>(x, Vec<L>{});
}
template <int L>
MNV3_INLINE Vec<L> relu6(Vec<L> x) {
  return at_most<L>(relu<L>(x), broadcast<L>(6.0f));
}
// clip(slope * x + 1/2, 0, 1)
template <int L>
MNV3_INLINE Vec<L> hardsigmoid(Vec<L> x, float slope) {
  return at_most<L>(at_least<L>(x * slope + 0.5f, Vec<L>{}), broadcast<L>(1.0f));
}
template <int L>
MNV3_INLINE Vec<L> hardswish(Vec<L> x) {
  return x * hardsigmoid<L>(x, 1.0f / 6);
}

// f(g) for the function g of one vector that an activation stands for. The switch stands outside of the loops over a
// tile's registers, so it costs one branch a tile.
template <int L, class F>
MNV3_INLINE void with_activation(int activation, float slope, const F& f) {
  if (activation == kRelu) f([](Vec<L> x) MNV3_ALWAYS { return relu<L>(x); });
  else if (activation == kHardswish) f([](Vec<L> x) MNV3_ALWAYS { return hardswish<L>(x); });
  else if (activation == kRelu6) f([](Vec<L> x) MNV3_ALWAYS { return relu6<L>(x); });
  else if (activation == kHardsigmoid) f([slope](Vec<L> x) MNV3_ALWAYS { return hardsigmoid<L>(x, slope); });
  else f([](Vec<L> x) MNV3_ALWAYS { return x; });
}

template <int L, int Rows, int Vectors>
MNV3_INLINE void activate(Vec<L> (&tile)[Rows][Vectors], int activation, float slope) {
  with_activation<L>(activation, slope, [&](auto act) MNV3_ALWAYS {
    MNV3_UNROLL for (int i = 0; i < Rows; i++) MNV3_UNROLL for (int v = 0; v < Vectors; v++) tile[i][v] =
        act(tile[i][v]);
  });
}

// tile = activation(tile), and to memory as store_tile does. A whole tile is stored value by value as it is ready: to
// finish all of it first costs a tenth of a short sum.
template <int L, int Rows, int Vectors>
MNV3_INLINE void store_activated(float* p, int64_t stride, int64_t columns, Vec<L> (&tile)[Rows][Vectors],
                                 int activation, float slope) {
  const bool whole = __builtin_expect(columns >= Vectors * L, 1);
  with_activation<L>(activation, slope, [&](auto act) MNV3_ALWAYS {
    MNV3_UNROLL for (int i = 0; i < Rows; i++) {
      MNV3_UNROLL for (int v = 0; v < Vectors; v++) {
        tile[i][v] = act(tile[i][v]);
        if (whole) store<L>(p + i * stride + v * L, tile[i][v]);
      }
    }
  });
  if (!whole) store_tile<L>(p, stride, columns, tile);
}

}  // namespace
}  // namespace MNV3_ISA
}  // namespace mnv3_fast
