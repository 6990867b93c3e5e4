// The two passes over a map around the squeeze-excite gate: channel sums, and the product with the gate.
// Any strides in, dense [pixels][channels] out. Bound by memory. See mnv3_fast/ops/squeeze_excite/README.md.
#include "kernels.h"
#include "simd/ring.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

constexpr int64_t kChunk = 64;  // pixels gathered at a time: 4 KiB, in L1

}  // namespace

void channel_sums(const ChannelSums& a) {
  record_variant(kSqueezeExcite, kThisIsa);
  float chunk[kChunk * kPanel];
  for (int64_t c = 0; c < a.channels; c += kPanel) {
    const int64_t channels = a.channels - c < kPanel ? a.channels - c : kPanel;
    Vec<kLanes> sum[kPanelVectors];
    for (int v = 0; v < kPanelVectors; v++) sum[v] = load_first<kLanes>(a.sums + c + v * kLanes, channels - v * kLanes);
    for (int64_t p = 0; p < a.pixels; p += kChunk) {
      const int64_t pixels = a.pixels - p < kChunk ? a.pixels - p : kChunk;
      gather_pixels(a.input + p * a.pixel_stride + c * a.channel_stride, a.pixel_stride, a.channel_stride, pixels,
                    channels, chunk, kPanel);
      Vec<kLanes> part[kPanelVectors] = {};  // one chain over all pixels of a large map would lose too much
      for (int64_t i = 0; i < pixels; i++) {
        for (int v = 0; v < kPanelVectors; v++) part[v] += load<kLanes>(chunk + i * kPanel + v * kLanes);
      }
      for (int v = 0; v < kPanelVectors; v++) sum[v] += part[v];
    }
    for (int v = 0; v < kPanelVectors; v++) store_first<kLanes>(a.sums + c + v * kLanes, sum[v], channels - v * kLanes);
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
