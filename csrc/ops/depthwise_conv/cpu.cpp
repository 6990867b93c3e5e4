// Depthwise convolution: output[y, x, c] = act(sum_{i, j} input[y s + i d - p, x s + j d - p, c] w[c, i, j] + b[c]).
// A strip gathers the input rows that are still needed (any strides), 16 channels at a time, into a padded ring in L1;
// the row kernel reads them by address and keeps up to kTilePixels output pixels in registers. For the kernels of
// MobileNetV3 (3 and 5 wide, stride 1 and 2) each input vector is loaded once for all the taps that read it.
// Bound by the FMA units for 5x5, by loads and the copy into the ring for 3x3. See
// mnv3_fast/ops/depthwise_conv/README.md.
#include "kernels.h"
#include "simd/activation.h"
#include "simd/ring.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

// Tile of Pixels outputs at x, lanes [lane, lane + kLanes). Kernel, Stride and PixelStride 0: from the arguments. A
// pixel stride that is known costs no additions, which would take turns with the multiply-adds.
template <int Kernel, int Stride, int PixelStride, int Pixels>
MNV3_INLINE void depthwise_taps(const DepthwiseRow& a, int64_t x, int lane, Vec<kLanes> (&acc)[Pixels][1]) {
  const Window& w = *a.window;
  const float* weight = a.weight + lane;
  if (Kernel == 0) {
    const int64_t tap = w.dilation_w * a.pixel_stride, step = w.stride_w * a.pixel_stride;
    for (int64_t r = 0; r < w.kernel_h; r++) {
      const float* in = a.rows[r] + x * step + lane;
      for (int64_t c = 0; c < w.kernel_w; c++, in += tap, weight += kPanel) {
        const Vec<kLanes> k = load<kLanes>(weight);
        MNV3_UNROLL for (int t = 0; t < Pixels; t++) acc[t][0] += load<kLanes>(in + t * step) * k;
      }
    }
    return;
  }
  for (int64_t r = 0; r < w.kernel_h; r++, weight += Kernel * kPanel) {
    Vec<kLanes> k[Kernel + 1];
    MNV3_UNROLL for (int c = 0; c < Kernel; c++) k[c] = load<kLanes>(weight + c * kPanel);
    const float* in = a.rows[r] + x * Stride * PixelStride + lane;
    MNV3_UNROLL for (int p = 0; p < (Pixels - 1) * Stride + Kernel; p++, in += PixelStride) {
      Vec<kLanes> v = load<kLanes>(in);
      MNV3_PIN(v);
      MNV3_UNROLL for (int c = 0; c < Kernel; c++) {
        if (p - c >= 0 && (p - c) % (Stride + !Stride) == 0 && (p - c) / (Stride + !Stride) < Pixels) {
          acc[(p - c) / (Stride + !Stride)][0] += v * k[c];
        }
      }
    }
  }
}

template <int Kernel, int Stride, int PixelStride, int Pixels>
__attribute__((noinline)) void depthwise_tile(const DepthwiseRow& a, int64_t x) {
  for (int lane = 0; lane < kPanel; lane += kLanes) {
    const Vec<kLanes> bias = load<kLanes>(a.bias + lane);
    Vec<kLanes> acc[Pixels][1];
    MNV3_UNROLL for (int t = 0; t < Pixels; t++) acc[t][0] = bias;
    depthwise_taps<Kernel, Stride, PixelStride, Pixels>(a, x, lane, acc);
    store_activated<kLanes>(a.output + x * a.output_stride + lane, a.output_stride, a.channels - lane, acc,
                            a.activation, 0);
    if (a.sum) {
      Vec<kLanes> sum = {};  // of the tile first: one chain over a long row would lose too much
      MNV3_UNROLL for (int t = 0; t < Pixels; t++) sum += acc[t][0];
      store<kLanes>(a.sum + lane, load<kLanes>(a.sum + lane) + sum);
    }
  }
}

template <int Kernel, int Stride, int PixelStride>
void depthwise_tile_of(int64_t pixels, const DepthwiseRow& a, int64_t x) {
#define MNV3_CASE(P)                                                                             \
  case P:                                                                                        \
    if constexpr (P <= kTilePixels) return depthwise_tile<Kernel, Stride, PixelStride, P>(a, x); \
    break;
  switch (pixels) {
    // clang-format off
    MNV3_CASE(1) MNV3_CASE(2) MNV3_CASE(3) MNV3_CASE(4) MNV3_CASE(5) MNV3_CASE(6) MNV3_CASE(7)
    MNV3_CASE(8) MNV3_CASE(9) MNV3_CASE(10) MNV3_CASE(11) MNV3_CASE(12) MNV3_CASE(13) MNV3_CASE(14)
    // clang-format on
  }
#undef MNV3_CASE
}

template <int Kernel, int Stride, int PixelStride>
void depthwise_tiles_of(const DepthwiseRow& a) {
  const int64_t tiles = (a.width + kTilePixels - 1) / kTilePixels, least = a.width / tiles,
                more = a.width - tiles * least;
  int64_t pixels;
  for (int64_t tile = 0, x = 0; tile < tiles; tile++, x += pixels) {
    pixels = least + (tile < more);  // tiles of equal width: no thin last one
    depthwise_tile_of<Kernel, Stride, PixelStride>(pixels, a, x);
  }
}

template <int Kernel, int Stride>
void depthwise_tiles(const DepthwiseRow& a) {
  if (a.pixel_stride == kPanel) return depthwise_tiles_of<Kernel, Stride, kPanel>(a);
  depthwise_tiles_of<Kernel, Stride, 2 * kPanel>(a);
}

void run_block(const DepthwiseStrip& a, int64_t block) {
  const Window& w = a.window;
  const int64_t pixels = w.pixels(a.output_w), channel = block * kPanel;
  const int64_t channels = a.channels - channel < kPanel ? a.channels - channel : kPanel;
  const int64_t padded_channels = round_up(a.channels, kPanel);
  const Ring ring = {a.scratch + pixels * kPanel, a.scratch, w.rows(), pixels * kPanel, kPanel};
  clear(ring.zeros, pixels * kPanel);
  clear_borders(ring, w, a.width, pixels);
  const int64_t inner = inner_pixels(w, a.width, pixels);
  const float* taps[kMostKernelRows];
  DepthwiseRow row = {taps,
                      kPanel,
                      a.output_w,
                      &w,
                      a.weight + channel * w.kernel_h * w.kernel_w,
                      a.bias + channel,
                      a.activation,
                      nullptr,
                      a.channels,
                      channels,
                      nullptr};
  int64_t next = 0;
  for (int64_t y = a.row_begin; y < a.row_end; y++) {
    const NewRows fresh = new_rows(w, y, a.height, next);
    for (int64_t i = fresh.begin; i < fresh.end; i++) {
      gather_pixels(a.input.data + i * a.input.row_stride + channel * a.input.channel_stride, a.input.pixel_stride,
                    a.input.channel_stride, inner, channels, ring.row(i) + w.pad_left * kPanel, kPanel);
    }
    if (fresh.end > next) next = fresh.end;
    for (int64_t ky = 0; ky < w.kernel_h; ky++) taps[ky] = ring.tap(w, y, ky, a.height);
    row.output = a.output + y * a.output_w * a.channels + channel;
    if (a.row_sums) {
      row.sum = a.row_sums + y * padded_channels + channel;
      clear(row.sum, kPanel);
    }
    depthwise_row(row);
  }
}

}  // namespace

void depthwise_row(const DepthwiseRow& a) {
  const Window& w = *a.window;
  if (w.dilation_w == 1 && w.kernel_w == 3 && w.stride_w == 1) return depthwise_tiles<3, 1>(a);
  if (w.dilation_w == 1 && w.kernel_w == 3 && w.stride_w == 2) return depthwise_tiles<3, 2>(a);
  if (w.dilation_w == 1 && w.kernel_w == 5 && w.stride_w == 1) return depthwise_tiles<5, 1>(a);
  if (w.dilation_w == 1 && w.kernel_w == 5 && w.stride_w == 2) return depthwise_tiles<5, 2>(a);
  depthwise_tiles_of<0, 0, 0>(a);
}

void depthwise_strip(const DepthwiseStrip& a) {
  record_variant(kDepthwiseConv, kThisIsa);
  for (int64_t block = a.block_begin; block < a.block_end; block++) run_block(a, block);
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
