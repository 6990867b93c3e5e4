// 1x1 convolution: output[m, n] = act(sum_k gate[k] input[m, k] weight[n, k] + bias[n]) + residual[m, n].
// Input and output are [pixels][channels]; weights are panels [ceil(N/16)][K][16], a last one of eight channels or
// fewer [ceil(K/2)][16] by pairs of inputs. Bound by the FMA units: a tile of kTileRows pixels x kTilePanels panels
// keeps its sums in registers, each weight vector is loaded once for kTileRows pixels and each input value once for all
// of the tile's channels. Every sum runs over the same blocks of k in the same order, whatever the tile, so results
// depend neither on the number of threads nor on the batch. See mnv3_fast/ops/pointwise_conv/README.md.
#include "kernels.h"
#include "simd/activation.h"
#include "simd/pairs.h"
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

// A sum of more inputs than this is made of blocks: one long chain in float32 loses too much.
constexpr int64_t kMostInputs = 256;

// Tiles of Rows pixels over one block of inputs, one after the other: some whole panels, which lie panel_stride apart,
// or a panel by pairs
// (`pairs`), or one of each.
struct Tile {
  const float* input;
  int64_t input_stride, inputs;
  const float *weight, *pairs, *bias;
  int64_t panel_stride;
  float* output;
  int64_t output_stride, columns;
  const float* residual;
  int64_t residual_stride;
  int activation;
  float slope;
  bool first, last;  // block of inputs: starts from the bias, ends with activation and residual
  int64_t tiles;
  const char* prefetch;
  int64_t prefetch_step;  // bytes a k, 0 for nothing to fetch
};

template <int Rows>
constexpr int kPointers = (Rows + kRowsAPointer - 1) / kRowsAPointer;

// Where pixel i of a tile is: each kRowsAPointer rows share a pointer, from which the stride (in bytes) reaches the
// others.
template <int Rows>
MNV3_INLINE const float* pixel_of(const char* const (&row)[kPointers<Rows>], int64_t stride, int i) {
  return reinterpret_cast<const float*>(row[i / kRowsAPointer] + i % kRowsAPointer * stride);
}

// Keeps GCC from hoisting sums of rows and stride into registers that the tile needs.
template <int Rows>
MNV3_INLINE void pin_rows(const char* (&row)[kPointers<Rows>], int64_t& stride) {
  MNV3_UNROLL for (int i = 0; i < kPointers<Rows>; i++) MNV3_PIN_INDEX(row[i]);
  MNV3_PIN_INDEX(stride);
}

// One k: weight vectors once, then a broadcast for each pixel. A tile that fills the registers reads its last weight
// vector again for each pixel.
template <int Rows, int Vectors>
MNV3_INLINE void step(const char* const (&row)[kPointers<Rows>], int64_t stride, int k, const float* weight,
                      int64_t panel_stride, Vec<kLanes> (&sum)[Rows][Vectors]) {
  constexpr int kHeld = Rows * Vectors + Vectors < kRegisters ? Vectors : Vectors - 1;
  Vec<kLanes> w[Vectors];
  MNV3_UNROLL for (int v = 0; v < kHeld; v++) {
    w[v] = load<kLanes>(weight + v * kLanes / kPanel * panel_stride + v * kLanes % kPanel);
  }
  MNV3_UNROLL for (int i = 0; i < Rows; i++) {
    const float* pixel = pixel_of<Rows>(row, stride, i) + k;
    // Used once: the multiply-add itself broadcasts, at full rate.
    const Vec<kLanes> x = Vectors > 1 ? broadcast_from<kLanes>(pixel) : broadcast<kLanes>(*pixel);
    MNV3_UNROLL for (int v = 0; v < kHeld; v++) { sum[i][v] += x * w[v]; }
    if constexpr (kHeld < Vectors) {
      constexpr int kLast = kHeld * kLanes;
      MNV3_PIN_INDEX(weight);
      sum[i][kHeld] += x * load<kLanes>(weight + kLast / kPanel * panel_stride + kLast % kPanel);
    }
  }
}

// Two k of a panel by pairs: even lanes take the first, odd ones the second. `last`: there is one k alone.
template <int Rows>
MNV3_INLINE void step_pairs(const char* const (&row)[kPointers<Rows>], int64_t stride, const float* weight, bool last,
                            Vec<kLanes> (&sum)[Rows][kPanelVectors]) {
  Vec<kLanes> w[kPanelVectors];
  MNV3_UNROLL for (int v = 0; v < kPanelVectors; v++) w[v] = load<kLanes>(weight + v * kLanes);
  MNV3_UNROLL for (int i = 0; i < Rows; i++) {
    const float* pixel = pixel_of<Rows>(row, stride, i);
    const Vec<kLanes> x = last ? broadcast_single_from<kLanes>(pixel) : broadcast_pair_from<kLanes>(pixel);
    MNV3_UNROLL for (int v = 0; v < kPanelVectors; v++) sum[i][v] += x * w[v];
  }
}

// What comes after the sums over a block of inputs.
template <int Rows, int Vectors>
MNV3_INLINE void finish_tile(const Tile& t, float* output, const float* residual, Vec<kLanes> (&sum)[Rows][Vectors]) {
  if (!t.first) add_tile<kLanes>(output, t.output_stride, t.columns, sum);
  if (!t.last) return store_tile<kLanes>(output, t.output_stride, t.columns, sum);
  if (!residual) return store_activated<kLanes>(output, t.output_stride, t.columns, sum, t.activation, t.slope);
  activate<kLanes>(sum, t.activation, t.slope);
  add_tile<kLanes>(residual, t.residual_stride, t.columns, sum);
  store_tile<kLanes>(output, t.output_stride, t.columns, sum);
}

// The same for a panel by pairs, from channel `first` of the tile on, two pixels at a time. The second of a lone pixel
// is itself.
template <int Rows>
MNV3_INLINE void finish_pairs(const Tile& t, float* output, const float* residual, int64_t first,
                              Vec<kLanes> (&sum)[Rows][kPanelVectors]) {
  with_activation<kLanes>(t.activation, t.slope, [&](auto act) MNV3_ALWAYS {
    MNV3_UNROLL for (int i = 0; i < Rows; i += 2) MNV3_UNROLL for (int v = 0; v < kPanelVectors; v++) {
      const int64_t j = i + 1 < Rows ? i + 1 : i, channel = first + v * kLanes / 2, columns = t.columns - channel;
      float *one = output + i * t.output_stride + channel, *other = output + j * t.output_stride + channel;
      Vec<kLanes> y = add_pairs<kLanes>(sum[i][v], sum[j][v]);
      y += t.first ? load_halves<kLanes>(t.bias + channel, t.bias + channel, kLanes)
                   : load_halves<kLanes>(one, other, columns);
      if (t.last) {
        y = act(y);
        if (residual)
          y += load_halves<kLanes>(residual + i * t.residual_stride + channel,
                                   residual + j * t.residual_stride + channel, columns);
      }
      store_halves<kLanes>(one, other, columns, y);
    }
  });
}

// The sums of one tile.
template <int Rows, int Panels, bool Pairs, int Vectors>
MNV3_INLINE void add_products(const Tile& t, const float* input, const char*& prefetch,
                              Vec<kLanes> (&sum)[Rows][Vectors], Vec<kLanes> (&pair_sum)[Rows][kPanelVectors]) {
  constexpr int kVectors = Panels * kPanelVectors;
  const char* row[kPointers<Rows>];
  MNV3_UNROLL for (int i = 0; i < Rows; i += kRowsAPointer) row[i / kRowsAPointer] =
      reinterpret_cast<const char*>(input + i * t.input_stride);
  const float *weight = t.weight, *pairs = t.pairs;
  int64_t stride = t.input_stride * 4, panel_stride = t.panel_stride;
  constexpr int kSteps = Pairs ? 2 : 1;
  for (int64_t k = kSteps; k <= t.inputs; k += kSteps) {
    if (Rows == 1) {  // one pixel streams the weights from memory
      MNV3_UNROLL for (int p = 0; p < Panels; p++) __builtin_prefetch(weight + p * panel_stride + 32 * kPanel);
      if constexpr (Pairs) __builtin_prefetch(pairs + 32 * kPanel);
    } else {
      __builtin_prefetch(prefetch, 0, 2);
      prefetch += t.prefetch_step;
    }
    if constexpr (Panels > 0) {
      MNV3_UNROLL for (int j = 0; j < kSteps; j++, weight += kPanel) {
        pin_rows<Rows>(row, stride);
        step<Rows, kVectors>(row, stride, j, weight, panel_stride, sum);
      }
    }
    if constexpr (Pairs) {
      pin_rows<Rows>(row, stride);
      step_pairs<Rows>(row, stride, pairs, false, pair_sum);
      pairs += kPanel;
    }
    MNV3_UNROLL for (int i = 0; i < kPointers<Rows>; i++) row[i] += 4 * kSteps;
  }
  if constexpr (Pairs) {
    if (t.inputs % 2) {
      if constexpr (Panels > 0) step<Rows, kVectors>(row, stride, 0, weight, panel_stride, sum);
      step_pairs<Rows>(row, stride, pairs, true, pair_sum);
    }
  }
}

// Panels: whole ones, side by side; Pairs: and one by pairs.
template <int Rows, int Panels, bool Pairs>
__attribute__((noinline)) void run_tiles(const Tile& t) {
  constexpr int kVectors = Panels * kPanelVectors, kSome = kVectors ? kVectors : 1;
  const float *input = t.input, *residual = t.residual;
  float* output = t.output;
  const char* prefetch = t.prefetch;
  for (int64_t tile = 0; tile < t.tiles; tile++) {
    Vec<kLanes> sum[Rows][kSome], pair_sum[Rows][kPanelVectors];
    MNV3_UNROLL for (int v = 0; v < kVectors; v++) {
      const Vec<kLanes> bias = t.first ? load<kLanes>(t.bias + v * kLanes) : Vec<kLanes>{};
      MNV3_UNROLL for (int i = 0; i < Rows; i++) sum[i][v] = bias;
    }
    if constexpr (Pairs) {
      MNV3_UNROLL for (int v = 0; v < kPanelVectors; v++) MNV3_UNROLL for (int i = 0; i < Rows; i++) pair_sum[i][v] =
          Vec<kLanes>{};
    }
    add_products<Rows, Panels, Pairs>(t, input, prefetch, sum, pair_sum);
    if constexpr (Panels > 0) finish_tile(t, output, residual, sum);
    if constexpr (Pairs) finish_pairs<Rows>(t, output, residual, Panels * kPanel, pair_sum);
    input += Rows * t.input_stride;
    output += Rows * t.output_stride;
    if (residual) residual += Rows * t.residual_stride;
  }
}

template <int Panels, bool Pairs>
void run_tile_of(int64_t rows, const Tile& t) {
#define MNV3_CASE(R)                                                     \
  case R:                                                                \
    if constexpr (R <= kTallRows) return run_tiles<R, Panels, Pairs>(t); \
    break;
  switch (rows) {
    // clang-format off
    MNV3_CASE(1) MNV3_CASE(2) MNV3_CASE(3) MNV3_CASE(4) MNV3_CASE(5) MNV3_CASE(6) MNV3_CASE(7)
    MNV3_CASE(8) MNV3_CASE(9) MNV3_CASE(10) MNV3_CASE(11) MNV3_CASE(12) MNV3_CASE(13) MNV3_CASE(14)
    // clang-format on
  }
#undef MNV3_CASE
}

void run_panels(int64_t rows, int64_t panels, const Tile& t) {
  if (rows == 1 && panels == kRowPanels) return run_tiles<1, kRowPanels, false>(t);
  if constexpr (kTilePanels > 1) {
    if (panels == kTilePanels)
      return t.pairs ? run_tile_of<1, true>(rows, t) : run_tile_of<kTilePanels, false>(rows, t);
  }
  if (t.pairs) return run_tile_of<0, true>(rows, t);
  run_tile_of<1, false>(rows, t);
}

// Lets a tile fetch a line of the stream at each step, if it may.
void fetch(WeightStream* stream, const char* in_use_end, int64_t rows, Tile& t) {
  t.prefetch = reinterpret_cast<const char*>(t.weight);
  t.prefetch_step = 0;
  if (!stream || rows == 1) return;  // one row alone streams its own weights
  if (stream->in_order && stream->next < in_use_end) stream->next = in_use_end;
  if (stream->next >= stream->end || (stream->in_order && stream->next >= in_use_end + kAhead)) return;
  t.prefetch = stream->next;
  t.prefetch_step = 64;
  stream->next += 64 * t.tiles * (t.pairs ? t.inputs / 2 : t.inputs);
}

// All blocks of inputs of one tile, in order. The tile comes by reference: a copy would read in vectors what has just
// been written field by field, which no store can forward.
void run_blocks(int64_t rows, int64_t panels, int64_t inputs, WeightStream* stream, Tile& t) {
  const float* weights_end = t.pairs ? t.pairs + (inputs + 1) / 2 * kPanel : t.weight + panels * kPanel * inputs;
  const auto* in_use_end = reinterpret_cast<const char*>(weights_end);
  if (inputs <= kMostInputs) {
    t.inputs = inputs;
    fetch(stream, in_use_end, rows, t);
    return run_panels(rows, panels, t);
  }
  const int64_t blocks = (inputs + kMostInputs - 1) / kMostInputs;
  const float *input = t.input, *weight = t.weight, *pairs = t.pairs;
  int64_t begin = 0;
  for (int64_t b = 0; b < blocks; b++, begin += t.inputs) {
    const int64_t end = b == blocks - 1 ? inputs : inputs * (b + 1) / blocks & ~int64_t{1};  // pairs stay together
    t.inputs = end - begin;
    t.input = input + begin;
    t.weight = weight + begin * kPanel;
    t.pairs = pairs ? pairs + begin / 2 * kPanel : nullptr;
    t.first = b == 0;
    t.last = b == blocks - 1;
    fetch(stream, in_use_end, rows, t);
    run_panels(rows, panels, t);
  }
  t.weight = weight;
  t.pairs = pairs;
}

// All panels over `pixels` pixels: a group of panels stays in L1 while the pixels pass.
void run_strip(const Pointwise& a, const float* input, int64_t input_stride, int64_t first, int64_t pixels) {
  const int64_t tallest = pixels > 2 * kTallRows ? kTileRows : kTallRows, tiles = (pixels + tallest - 1) / tallest,
                least_rows = pixels / tiles, more = pixels - tiles * least_rows;
  const int64_t group = pixels == 1 ? kRowPanels : kTilePanels;
  int64_t panels;
  for (int64_t panel = a.panel_begin; panel < a.panel_end; panel += panels) {
    const int64_t channel = panel * kPanel, left = a.outputs - channel;
    // A tile of several panels may end in one by pairs, a single pixel's may not.
    const bool side_by_side = group == kTilePanels || left > group * kPanel - kPanel / 2;
    panels = panel + group <= a.panel_end && side_by_side ? group : 1;
    const int64_t last = (panels - 1) * kPanel;
    const bool pairs = left - last <= kPanel / 2;
    Tile t = {input,
              input_stride,
              a.inputs,
              a.weight + channel * a.inputs,
              pairs ? a.weight + (channel + last) * a.inputs : nullptr,
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
              1,
              nullptr,
              0};
    if (t.columns > panels * kPanel) t.columns = panels * kPanel;
    int64_t rows;
    for (int64_t tile = 0, m = 0; tile < tiles; tile += t.tiles, m += t.tiles * rows) {
      rows = least_rows + (tile < more);  // tiles of equal height: no thin last one
      t.tiles = tile < more ? more : tiles - more;
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
  if (!a.gate && a.pixels <= kTallRows) return run_strip(a, a.input, a.input_stride, 0, a.pixels);
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
