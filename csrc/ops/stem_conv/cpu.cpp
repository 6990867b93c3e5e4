// Dense convolution of few input channels, straight from the image: NCHW or NHWC, float or uint8, x * scale + shift on
// load. output[y, x, o] = act(sum_{c, i, j} image[c, y s + i d - p, x s + j d - p] w[o, c, i, j] + b[o]).
// Rows that are still needed lie converted and padded in a ring of planes; each value is broadcast to 16 output
// channels, so no im2col is built. Bound by the FMA units and, with 27 taps, by the epilogue.
// See mnv3_fast/ops/stem_conv/README.md.
#include "kernels.h"
#include "simd/activation.h"
#include "simd/ring.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

struct StemTile {
  const float* const* rows;  // inputs * kernel_h pointers, input channel outside
  int64_t count;
  const Window* window;
  const float *weight, *bias;  // [count * kernel_w][16], [16]
  int activation;
  float* output;
  int64_t output_stride, channels;
};

// A sum of more taps than this is made of blocks: one long chain in float32 loses too much.
constexpr int64_t kMostTaps = 32;

// to += from, from = 0.
template <int Pixels>
MNV3_INLINE void add_up(Vec<kLanes> (&from)[Pixels][kPanelVectors], Vec<kLanes> (&to)[Pixels][kPanelVectors]) {
  MNV3_UNROLL for (int t = 0; t < Pixels; t++) MNV3_UNROLL for (int v = 0; v < kPanelVectors; v++) {
    to[t][v] += from[t][v];
    from[t][v] = Vec<kLanes>{};
  }
}

// Pixels outputs from x on; Kernel and Stride 0: from the window.
template <int Pixels, int Kernel, int Stride>
__attribute__((noinline)) void run_tile(const StemTile& a, int64_t x) {
  const Window& w = *a.window;
  const int64_t stride = Stride ? Stride : w.stride_w;
  Vec<kLanes> acc[Pixels][kPanelVectors];
  MNV3_UNROLL for (int v = 0; v < kPanelVectors; v++) {
    const Vec<kLanes> bias = load<kLanes>(a.bias + v * kLanes);
    MNV3_UNROLL for (int t = 0; t < Pixels; t++) acc[t][v] = bias;
  }
  const float* weight = a.weight;
  Vec<kLanes> blocks[Pixels][kPanelVectors] = {};
  int64_t taps = 0;
  for (int64_t r = 0; r < a.count; r++) {
    if (Kernel == 0 && (taps += w.kernel_w) > kMostTaps) {
      taps = w.kernel_w;
      add_up<Pixels>(acc, blocks);
    }
    const float* in = a.rows[r] + x * stride;
    for (int64_t c = 0; c < (Kernel ? Kernel : w.kernel_w); c++, in += Kernel ? 1 : w.dilation_w, weight += kPanel) {
      Vec<kLanes> k[kPanelVectors];
      MNV3_UNROLL for (int v = 0; v < kPanelVectors; v++) k[v] = load<kLanes>(weight + v * kLanes);
      MNV3_UNROLL for (int t = 0; t < Pixels; t++) {
        // Used once: the multiply-add itself broadcasts, at full rate.
        const Vec<kLanes> pixel =
            kPanelVectors > 1 ? broadcast_from<kLanes>(in + t * stride) : broadcast<kLanes>(in[t * stride]);
        MNV3_UNROLL for (int v = 0; v < kPanelVectors; v++) acc[t][v] += pixel * k[v];
      }
    }
  }
  if (Kernel == 0) add_up<Pixels>(blocks, acc);
  store_activated<kLanes>(a.output + x * a.output_stride, a.output_stride, a.channels, acc, a.activation, 0);
}

template <int Kernel, int Stride>
void run_tile_of(int64_t pixels, const StemTile& a, int64_t x) {
#define MNV3_CASE(P)                                                          \
  case P:                                                                     \
    if constexpr (P <= kStemPixels) return run_tile<P, Kernel, Stride>(a, x); \
    break;
  switch (pixels) {
    // clang-format off
    MNV3_CASE(1) MNV3_CASE(2) MNV3_CASE(3) MNV3_CASE(4) MNV3_CASE(5) MNV3_CASE(6) MNV3_CASE(7)
    MNV3_CASE(8) MNV3_CASE(9) MNV3_CASE(10) MNV3_CASE(11) MNV3_CASE(12) MNV3_CASE(13) MNV3_CASE(14)
    // clang-format on
  }
#undef MNV3_CASE
}

template <typename T>
void convert_row(const StemStrip& a, int64_t channel, int64_t y, int64_t pixels, float* output) {
  const T* in = static_cast<const T*>(a.input) + channel * a.channel_stride + y * a.row_stride;
  const float scale = a.scale ? a.scale[channel] : 1, shift = a.shift ? a.shift[channel] : 0;
  if (a.pixel_stride == 1)
    for (int64_t x = 0; x < pixels; x++) output[x] = float(in[x]) * scale + shift;
  else
    for (int64_t x = 0; x < pixels; x++) output[x] = float(in[x * a.pixel_stride]) * scale + shift;
}

void convert(const StemStrip& a, int64_t channel, int64_t y, int64_t pixels, float* output) {
  if (a.bytes) convert_row<uint8_t>(a, channel, y, pixels, output);
  else convert_row<float>(a, channel, y, pixels, output);
}

void run_row(const StemStrip& a, const float* const* rows, int64_t y) {
  const int64_t count = a.inputs * a.window.kernel_h, tiles = (a.output_w + kStemPixels - 1) / kStemPixels;
  for (int64_t channel = 0; channel < a.outputs; channel += kPanel) {
    const StemTile tile = {rows,
                           count,
                           &a.window,
                           a.weight + channel * count * a.window.kernel_w,
                           a.bias + channel,
                           a.activation,
                           a.output + y * a.output_w * a.outputs + channel,
                           a.outputs,
                           a.outputs - channel};
    int64_t pixels;
    for (int64_t t = 0, x = 0; t < tiles; t++, x += pixels) {
      pixels = a.output_w / tiles + (t < a.output_w % tiles);
      if (a.window.stride_w == 2 && a.window.kernel_w == 3 && a.window.dilation_w == 1 && count * 3 <= kMostTaps)
        run_tile_of<3, 2>(pixels, tile, x);
      else run_tile_of<0, 0>(pixels, tile, x);
    }
  }
}

}  // namespace

void stem_strip(const StemStrip& a) {
  record_variant(kStemConv, kThisIsa);
  const Window& w = a.window;
  const int64_t pixels = w.pixels(a.output_w), inner = inner_pixels(w, a.width, pixels);
  float* zeros = a.scratch;
  clear(zeros, pixels);
  const auto plane = [&](int64_t channel) {
    return Ring{a.scratch + pixels + channel * w.rows() * pixels, zeros, w.rows(), pixels, 1};
  };
  for (int64_t channel = 0; channel < a.inputs; channel++) clear_borders(plane(channel), w, a.width, pixels);
  const float* rows[kMostStemRows];
  int64_t next = 0;
  for (int64_t y = a.row_begin; y < a.row_end; y++) {
    const NewRows fresh = new_rows(w, y, a.height, next);
    for (int64_t channel = 0; channel < a.inputs; channel++) {
      const Ring ring = plane(channel);
      for (int64_t i = fresh.begin; i < fresh.end; i++) convert(a, channel, i, inner, ring.row(i) + w.pad_left);
      for (int64_t ky = 0; ky < w.kernel_h; ky++) rows[channel * w.kernel_h + ky] = ring.tap(w, y, ky, a.height);
    }
    if (fresh.end > next) next = fresh.end;
    run_row(a, rows, y);
  }
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
