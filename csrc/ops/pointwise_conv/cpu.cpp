// 1x1 convolution: output[m, n] = act(sum_k gate[k] input[m, k] weight[n, k] + bias[n]) + residual[m, n].
// Input and output are [pixels][channels]; weights are panels [ceil(N/16)][K][16]. Bound by the FMA units: a tile of
// kTileRows pixels x kTilePanels panels keeps its sums in registers, each weight vector is loaded once for kTileRows
// pixels and each input value once for all of the tile's channels. Every sum runs over the same blocks of k in the same
// order, whatever the tile, so results depend neither on the number of threads nor on the batch.
// See mnv3_fast/ops/pointwise_conv/README.md.
#include "kernels.h"
#include "simd/activation.h"
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

// A sum of more inputs than this is made of blocks: one long chain in float32 loses too much.
constexpr int64_t kMostInputs = 256;

// A tile of Rows pixels and Vectors * L channels (with Half: and eight of the next panel) over one block of inputs; its
// panels lie panel_stride apart.
struct Tile {
  const float* input;
  int64_t input_stride, inputs;
  const float *weight, *bias;
  int64_t panel_stride;
  float* output;
  int64_t output_stride, columns;
  const float* residual;
  int64_t residual_stride;
  int activation;
  float slope;
  bool first, last;  // block of inputs: starts from the bias, ends with activation and residual
  const char* prefetch;
  int64_t prefetch_step;  // bytes a k, 0 for nothing to fetch
};

template <int Rows>
constexpr int kPointers = (Rows + kRowsAPointer - 1) / kRowsAPointer;

// One k: weight vectors once, then a broadcast for each pixel. Each kRowsAPointer rows share a pointer, from which the
// stride (in bytes) reaches the others.
template <bool Half, int Rows, int Vectors, int L>
MNV3_INLINE void step(const char* const (&row)[kPointers<Rows>], int64_t stride, const float* weight,
                      int64_t panel_stride, Vec<L> (&sum)[Rows][Vectors], Vec<8> (&half)[Rows][1]) {
  Vec<L> w[Vectors];
  MNV3_UNROLL for (int v = 0; v < Vectors; v++) {
    w[v] = load<L>(weight + v * L / kPanel * panel_stride + v * L % kPanel);
  }
  Vec<8> half_w;
  if constexpr (Half) half_w = load<8>(weight + panel_stride);
  MNV3_UNROLL for (int i = 0; i < Rows; i++) {
    const float* pixel = reinterpret_cast<const float*>(row[i / kRowsAPointer] + i % kRowsAPointer * stride);
    // Used once: the multiply-add itself broadcasts, at full rate.
    const Vec<L> x = Vectors > 1 || Half ? broadcast_from<L>(pixel) : broadcast<L>(*pixel);
    MNV3_UNROLL for (int v = 0; v < Vectors; v++) { sum[i][v] += x * w[v]; }
    if constexpr (Half) half[i][0] += lower_half(x) * half_w;
  }
}

// What comes after the sums over a block of inputs, for the tile's channels from `first` on.
template <int L, int Rows, int Vectors>
MNV3_INLINE void finish_tile(const Tile& t, int64_t first, Vec<L> (&sum)[Rows][Vectors]) {
  const int64_t columns = t.columns - first;
  float* output = t.output + first;
  if (!t.first) add_tile<L>(output, t.output_stride, columns, sum);
  if (!t.last) return store_tile<L>(output, t.output_stride, columns, sum);
  if (!t.residual) return store_activated<L>(output, t.output_stride, columns, sum, t.activation, t.slope);
  activate<L>(sum, t.activation, t.slope);
  add_tile<L>(t.residual + first, t.residual_stride, columns, sum);
  store_tile<L>(output, t.output_stride, columns, sum);
}

template <int Rows, int Vectors, int L, bool Half>
__attribute__((noinline)) void run_tile(const Tile& t) {
  Vec<8> half[Rows][1];
  if constexpr (Half) {
    const Vec<8> bias = t.first ? load<8>(t.bias + kPanel) : Vec<8>{};
    MNV3_UNROLL for (int i = 0; i < Rows; i++) half[i][0] = bias;
  }
  Vec<L> sum[Rows][Vectors];
  MNV3_UNROLL for (int v = 0; v < Vectors; v++) {
    const Vec<L> bias = t.first ? load<L>(t.bias + v * L) : Vec<L>{};
    MNV3_UNROLL for (int i = 0; i < Rows; i++) sum[i][v] = bias;
  }
  const char* row[kPointers<Rows>];
  MNV3_UNROLL for (int i = 0; i < Rows; i += kRowsAPointer) row[i / kRowsAPointer] =
      reinterpret_cast<const char*>(t.input + i * t.input_stride);
  const float* weight = t.weight;
  const char* prefetch = t.prefetch;
  int64_t stride = t.input_stride * 4, panel_stride = t.panel_stride, k = 0;
  for (; k < t.inputs; k++) {
    MNV3_UNROLL for (int i = 0; i < kPointers<Rows>; i++) MNV3_PIN_INDEX(row[i]);
    MNV3_PIN_INDEX(stride);
    if (Rows == 1) {  // one pixel streams the weights from memory
      MNV3_UNROLL for (int v = 0; v < Vectors; v += kPanelVectors)
          __builtin_prefetch(weight + v * L / kPanel * panel_stride + 32 * kPanel);
    } else {
      __builtin_prefetch(prefetch, 0, 2);
      prefetch += t.prefetch_step;
    }
    step<Half, Rows, Vectors, L>(row, stride, weight, panel_stride, sum, half);
    MNV3_UNROLL for (int i = 0; i < kPointers<Rows>; i++) row[i] += 4;
    weight += kPanel;
  }
  finish_tile<L>(t, 0, sum);
  if constexpr (Half) finish_tile<8>(t, kPanel, half);
}

template <int Vectors, int L, bool Half = false>
void run_tile_of(int64_t rows, const Tile& t) {
#define MNV3_CASE(R)                                                       \
  case R:                                                                  \
    if constexpr (R <= kTileRows) return run_tile<R, Vectors, L, Half>(t); \
    break;
  switch (rows) {
    // clang-format off
    MNV3_CASE(1) MNV3_CASE(2) MNV3_CASE(3) MNV3_CASE(4) MNV3_CASE(5) MNV3_CASE(6) MNV3_CASE(7)
    MNV3_CASE(8) MNV3_CASE(9) MNV3_CASE(10) MNV3_CASE(11) MNV3_CASE(12) MNV3_CASE(13) MNV3_CASE(14)
    // clang-format on
  }
#undef MNV3_CASE
}

// Eight channels or fewer of a last panel need half of its lanes.
constexpr int kHalfLanes = kLanes > 8 ? 8 : kLanes;

void run_panels(int64_t rows, int64_t panels, const Tile& t) {
  if (rows == 1 && panels == kRowPanels) return run_tile<1, kRowPanels * kPanelVectors, kLanes, false>(t);
  if constexpr (kTilePanels > 1) {
    if (panels == kTilePanels && t.columns > kPanel + 8)
      return run_tile_of<kTilePanels * kPanelVectors, kLanes>(rows, t);
    if (panels == kTilePanels) return run_tile_of<kPanelVectors, kLanes, true>(rows, t);
  }
  if (t.columns <= 8) return run_tile_of<8 / kHalfLanes, kHalfLanes>(rows, t);
  run_tile_of<kPanelVectors, kLanes>(rows, t);
}

// Lets a tile over `inputs` fetch as many lines of the stream, if it may.
void fetch(WeightStream* stream, const char* in_use_end, int64_t rows, int64_t inputs, Tile& t) {
  t.prefetch = reinterpret_cast<const char*>(t.weight);
  t.prefetch_step = 0;
  if (!stream || rows == 1) return;  // one row alone streams its own weights
  if (stream->in_order && stream->next < in_use_end) stream->next = in_use_end;
  if (stream->next >= stream->end || (stream->in_order && stream->next >= in_use_end + kAhead)) return;
  t.prefetch = stream->next;
  t.prefetch_step = 64;
  stream->next += 64 * inputs;
}

// All blocks of inputs of one tile, in order. The tile comes by reference: a copy would read in vectors what has just
// been written field by field, which no store can forward.
void run_blocks(int64_t rows, int64_t panels, int64_t inputs, WeightStream* stream, Tile& t) {
  if (inputs <= kMostInputs) {
    t.inputs = inputs;
    fetch(stream, reinterpret_cast<const char*>(t.weight + panels * kPanel * inputs), rows, inputs, t);
    return run_panels(rows, panels, t);
  }
  const int64_t blocks = (inputs + kMostInputs - 1) / kMostInputs;
  const float *input = t.input, *weight = t.weight;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t begin = inputs * b / blocks;
    t.inputs = inputs * (b + 1) / blocks - begin;
    t.input = input + begin;
    t.weight = weight + begin * kPanel;
    t.first = b == 0;
    t.last = b == blocks - 1;
    fetch(stream, reinterpret_cast<const char*>(weight + panels * kPanel * inputs), rows, t.inputs, t);
    run_panels(rows, panels, t);
  }
  t.weight = weight;
}

// All panels over `pixels` pixels: a group of panels stays in L1 while the pixels pass.
void run_strip(const Pointwise& a, const float* input, int64_t input_stride, int64_t first, int64_t pixels) {
  const int64_t tiles = (pixels + kTileRows - 1) / kTileRows, least_rows = pixels / tiles,
                more = pixels - tiles * least_rows;
  const int64_t group = pixels == 1 ? kRowPanels : kTilePanels;
  int64_t panels;
  for (int64_t panel = a.panel_begin; panel < a.panel_end; panel += panels) {
    const int64_t channel = panel * kPanel;
    panels = panel + group <= a.panel_end ? group : 1;
    Tile t = {input,
              input_stride,
              a.inputs,
              a.weight + channel * a.inputs,
              a.bias + channel,
              kPanel * a.inputs,
              nullptr,
              a.output_stride,
              a.outputs - channel,
              nullptr,
              a.residual_stride,
              a.activation,
              a.slope,
              true,
              true,
              nullptr,
              0};
    if (t.columns > panels * kPanel) t.columns = panels * kPanel;
    int64_t rows;
    for (int64_t tile = 0, m = 0; tile < tiles; tile++, m += rows) {
      rows = least_rows + (tile < more);  // tiles of equal height: no thin last one
      t.input = input + m * input_stride;
      t.output = a.output + (first + m) * a.output_stride + channel;
      if (a.residual) t.residual = a.residual + (first + m) * a.residual_stride + channel;
      run_blocks(rows, panels, a.inputs, a.stream, t);
    }
  }
}

void scale_channels(const float* input, int64_t stride, int64_t pixels, int64_t channels, const float* gate,
                    float* output) {
  for (int64_t m = 0; m < pixels; m++, input += stride, output += channels) {
    int64_t k = 0;
    for (; k + kLanes <= channels; k += kLanes)
      store<kLanes>(output + k, load<kLanes>(input + k) * load<kLanes>(gate + k));
    for (; k < channels; k++) output[k] = input[k] * gate[k];
  }
}

}  // namespace

void pointwise_tile(const PointwiseTile& a) {
  *a.pixels = kTileRows;
  *a.channels = kTilePanels * kPanel;
}

void pointwise(const Pointwise& a) {
  record_variant(kPointwiseConv, kThisIsa);
  if (a.pixels == 0) return;
  if (!a.gate && a.pixels <= kTileRows) return run_strip(a, a.input, a.input_stride, 0, a.pixels);
  const int64_t strip = pointwise_strip(a.inputs);
  for (int64_t m = 0; m < a.pixels; m += strip) {
    const int64_t pixels = a.pixels - m < strip ? a.pixels - m : strip;
    const float* input = a.input + m * a.input_stride;
    if (!a.gate) {
      run_strip(a, input, a.input_stride, m, pixels);
      continue;
    }
    scale_channels(input, a.input_stride, pixels, a.inputs, a.gate, a.scratch);
    run_strip(a, a.scratch, a.inputs, m, pixels);
  }
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
