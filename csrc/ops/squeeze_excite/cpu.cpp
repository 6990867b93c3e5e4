// The two passes over a map around the squeeze-excite gate: channel means, and the product with the gate.
// Any strides in, dense [pixels][channels] out. Bound by memory. See mnv3_fast/ops/squeeze_excite/README.md.
#include "kernels.h"
#include "simd/ring.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

constexpr int64_t kChunk = 64;  // pixels gathered at a time: 4 KiB, in L1
constexpr int64_t kChain = 8;

MNV3_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// total += the sum of `pixels` pixels.
MNV3_INLINE void add_chain(const float* pixel, int64_t pixels, double (&total)[kPanel]) {
  float sum[kPanel];
  for (int v = 0; v < kPanel; v += kLanes) {
    Vec<kLanes> part = load<kLanes>(pixel + v);
    for (int64_t i = 1; i < pixels; i++) part += load<kLanes>(pixel + i * kPanel + v);
    store<kLanes>(sum + v, part);
  }
  for (int64_t i = 0; i < kPanel; i++) total[i] += sum[i];
}

}  // namespace

void channel_means(const ChannelMeans& a) {
  record_variant(kSqueezeExcite, kThisIsa);
  float chunk[kChunk * kPanel];
  for (int64_t c = 0; c < a.channels; c += kPanel) {
    const int64_t channels = a.channels - c < kPanel ? a.channels - c : kPanel;
    double total[kPanel] = {};
    for (int64_t y = 0; y < a.rows; y++) {
      for (int64_t p = 0; p < a.pixels; p += kChunk) {
        const int64_t pixels = a.pixels - p < kChunk ? a.pixels - p : kChunk;
        gather_pixels(a.input.data + y * a.input.row_stride + p * a.input.pixel_stride + c * a.input.channel_stride,
                      a.input.pixel_stride, a.input.channel_stride, pixels, channels, chunk, kPanel);
        for (int64_t i = 0; i < pixels; i += kChain) add_chain(chunk + i * kPanel, min(kChain, pixels - i), total);
      }
    }
    for (int64_t i = 0; i < channels; i++) a.means[c + i] = float(total[i] / double(a.count));
  }
}

void scale_pixels(const ScalePixels& a) {
  record_variant(kSqueezeExcite, kThisIsa);
  for (int64_t p = 0; p < a.pixels; p++) {
    const float* in = a.input + p * a.pixel_stride;
    float* out = a.output + p * a.channels;
    int64_t c = 0;
    if (a.channel_stride == 1) {
      for (; c + kLanes <= a.channels; c += kLanes) {
        const Vec<kLanes> x = load<kLanes>(in + c);
        store<kLanes>(out + c, a.gate ? x * load<kLanes>(a.gate + c) : x);
      }
    }
    for (; c < a.channels; c++) out[c] = in[c * a.channel_stride] * (a.gate ? a.gate[c] : 1);
  }
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
