// The contract between the kernels (csrc/ops/*/cpu.cpp, which know pointers and sizes, never torch) and their callers
// (csrc/ops/*/binding.cpp and csrc/engine). Sizes and strides count floats. A kernel computes a strip: rows [row_begin,
// row_end) of one image's output; a whole layer is the strip of all rows.
//
// Packed weights are the same for every instruction set: panels of 16 channels, depthwise [ceil(C/16)][kh*kw][16], stem
// [ceil(N/16)][Cin*kh*kw][16], pointwise [ceil(N/16)][K][16]; biases padded to a multiple of 16; padding is zero. A
// last panel of a pointwise conv with eight channels or fewer is half as long, [ceil(K/2)][16]: float 2j of row i is
// the weight of input 2i and channel j, float 2j + 1 that of input 2i + 1, so that no lane of a vector is wasted.
#pragma once
#include <stdint.h>

#include "isa.h"

namespace mnv3_fast {

enum Activation : int { kNone = 0, kRelu = 1, kHardswish = 2, kHardsigmoid = 3, kSigmoid = 4 };

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Whether the last panel of a pointwise weight is packed by pairs of inputs, and how many floats that weight has.
constexpr bool ends_in_pairs(int64_t outputs) { return (outputs - 1) % 16 < 8; }
constexpr int64_t pointwise_floats(int64_t inputs, int64_t outputs) {
  const int64_t panels = round_up(outputs, 16) * inputs;
  return ends_in_pairs(outputs) ? panels - 16 * inputs + 8 * round_up(inputs, 2) : panels;
}

// Bounds of the kernels' tables of row pointers; the callers check them.
constexpr int64_t kMostKernelRows = 64;
constexpr int64_t kMostStemRows = 256;

// In all four paddings of a window: TensorFlow's SAME, which follows the size of the input.
constexpr int64_t kSame = -1;

// Stride, padding and dilation of a spatial convolution.
struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_left, pad_right, pad_top, pad_bottom, dilation_h, dilation_w;
  // With the padding that an input of a size gets: what the kernels and the functions below are for.
  Window for_input(int64_t height, int64_t width) const {
    Window w = *this;
    if (pad_left != kSame) return w;
    pad_same(height, kernel_h, stride_h, dilation_h, w.pad_top, w.pad_bottom);
    pad_same(width, kernel_w, stride_w, dilation_w, w.pad_left, w.pad_right);
    return w;
  }
  int64_t output_h(int64_t h) const { return size(h + pad_top + pad_bottom, kernel_h, stride_h, dilation_h); }
  int64_t output_w(int64_t w) const { return size(w + pad_left + pad_right, kernel_w, stride_w, dilation_w); }
  // Input rows that one output row reads, and pixels that a row of `width` output pixels reads.
  int64_t rows() const { return (kernel_h - 1) * dilation_h + 1; }
  int64_t pixels(int64_t width) const { return (width - 1) * stride_w + (kernel_w - 1) * dilation_w + 1; }

 private:
  // As much as ceil(n / stride) outputs read, the odd zero behind.
  static void pad_same(int64_t n, int64_t kernel, int64_t stride, int64_t dilation, int64_t& before, int64_t& after) {
    const int64_t total = ((n + stride - 1) / stride - 1) * stride + (kernel - 1) * dilation + 1 - n;
    before = total > 0 ? total / 2 : 0;
    after = total > 0 ? total - before : 0;
  }
  static int64_t size(int64_t padded, int64_t kernel, int64_t stride, int64_t dilation) {
    const int64_t span = padded - (kernel - 1) * dilation - 1;
    return span < 0 ? 0 : span / stride + 1;
  }
};

// One image or map that is read with any strides.
struct Source {
  const float* data;
  int64_t row_stride, pixel_stride, channel_stride;
};

// How a weight is written: as [O][K], in panels, or in panels as a pointwise conv wants them; zeros to the end of the
// last.
enum Packing : int { kDense, kPanels, kPointwisePanels };

// weight[o, :] *= s[o], bias[o] = (bias[o] - mean[o]) * s[o] + bn_bias[o], s = bn_weight / sqrt(var + eps), in fp64.
struct FoldBatchNorm {
  const float *weight, *bias, *bn_weight, *bn_bias, *bn_mean,
      *bn_var;  // all but weight may be null; mean and var both or neither
  double eps;
  int64_t channels, per_channel;  // weight is [channels][per_channel], dense
  float *folded_weight, *folded_bias;
  Packing packing;
};

// Weights that are read later. While a 1x1 conv computes it pulls them towards L2, a line for each k: the units are
// busy then and the path to L3 is idle. In order, they lie behind those in use, and it is never more than kAhead bytes
// ahead.
struct WeightStream {
  const char *next, *end;
  bool in_order;
};
constexpr int64_t kAhead = 512 * 1024;

// What a 1x1 convolution keeps in registers.
struct PointwiseTile {
  int64_t *pixels, *channels;
};

// output[m, n] = act(sum_k (gate[k] *) input[m, k] * weight[n, k] + bias[n]) (+ residual[m, n]) for panels
// [panel_begin, panel_end).
struct Pointwise {
  int64_t pixels, inputs, outputs;  // M, K, N
  const float* input;
  int64_t input_stride;  // between pixels; channels lie side by side
  const float *weight, *bias;
  float* output;  // of channel 0, whichever panels are asked for
  int64_t output_stride;
  const float* residual;  // or null
  int64_t residual_stride;
  const float* gate;  // [K] or null
  float* scratch;     // pointwise_scratch(K) floats if gate is not null
  int activation;
  float slope;  // of kHardsigmoid
  int64_t panel_begin, panel_end;
  WeightStream* stream;  // or null
};
// Pixels that are worked on at a time: their inputs fit in a part of L2.
inline int64_t pointwise_strip(int64_t inputs) {
  const int64_t pixels = 24 * 1024 / (inputs > 0 ? inputs : 1);
  return round_up(pixels < 1 ? 1 : pixels, 14);
}
inline int64_t pointwise_scratch(int64_t inputs) { return pointwise_strip(inputs) * inputs; }

// One output row and 16 channels of a depthwise conv; input rows come by address, padded.
struct DepthwiseRow {
  const float* const* rows;  // kernel_h pointers to the pixel that tap 0 of output pixel 0 reads
  int64_t pixel_stride;      // 16 or 32: a ring holds one or two panels
  int64_t width;
  const Window* window;
  const float *weight, *bias;  // [kernel_h * kernel_w][16], [16]
  int activation;
  float* output;
  int64_t output_stride, channels;  // channels to store, 16 or fewer
  float* sum;                       // [16], or null: sums over the row
};

// Channels [16 b, 16 b + 16) of the depthwise conv of one image for b in [block_begin, block_end).
struct DepthwiseStrip {
  Source input;
  int64_t height, width, channels;  // of the input
  Window window;
  const float *weight, *bias;
  int activation;
  float* output;  // NHWC, dense
  int64_t output_w, row_begin, row_end, block_begin, block_end;
  float* row_sums;  // [output rows][round_up(C, 16)] sums over each row, or null
  float* scratch;   // depthwise_scratch(...) floats
};
inline int64_t depthwise_scratch(const Window& window, int64_t output_w) {
  return (window.rows() + 1) * window.pixels(output_w) * 16;
}

// Dense conv of few input channels (the stem) over one image of floats or bytes; x * scale + shift on load.
struct StemStrip {
  const void* input;
  bool bytes;  // uint8 instead of float
  int64_t row_stride, pixel_stride, channel_stride;
  int64_t height, width, inputs, outputs;
  const float *scale, *shift;  // [inputs] or null
  Window window;
  const float *weight, *bias;
  int activation;
  float* output;  // NHWC, dense
  int64_t output_w, row_begin, row_end;
  float* scratch;  // stem_scratch(...) floats
};
inline int64_t stem_scratch(const Window& window, int64_t inputs, int64_t output_w) {
  return (inputs * window.rows() + 1) * window.pixels(output_w);
}

// means[c] = sum over rows and pixels of input[y, p, c] / count. Chains of at most eight values in float32, their sums
// in float64: a map that is nearly constant would lose too much in one long chain, always in the same direction.
struct ChannelMeans {
  Source input;
  int64_t rows, pixels, channels, count;
  float* means;
};
// output[p, c] = input[p, c] * gate[c], output dense.
struct ScalePixels {
  const float* input;
  int64_t pixels, pixel_stride, channel_stride, channels;
  const float* gate;  // or null: a plain copy into dense NHWC
  float* output;
};

// An inverted residual block of one image whose input map is dense NHWC.
struct Block {
  const float* input;
  int64_t height, width, inputs, hidden, outputs, output_h, output_w;
  Window window;
  const float *expand_weight, *expand_bias;  // null: the depthwise conv reads the input
  const float *depthwise_weight, *depthwise_bias, *project_weight, *project_bias;
  int expand_activation, depthwise_activation, project_activation;
  bool residual;
  float* output;         // dense NHWC
  WeightStream* stream;  // or null
};
// Blocks of 32 hidden channels are expanded into a ring of rows that stays in L1/L2 until the depthwise conv has read
// it.
constexpr int64_t kHiddenBlock = 32;
inline int64_t hidden_blocks(const Block& b) { return (b.hidden + kHiddenBlock - 1) / kHiddenBlock; }
inline int64_t ring_floats(const Block& b) { return b.window.rows() * b.window.pixels(b.output_w) * kHiddenBlock; }
inline int64_t zero_floats(const Block& b) { return b.window.pixels(b.output_w) * kHiddenBlock; }
// Rows [row_begin, row_end) of a block without squeeze-excite, all three convs.
struct BlockRows {
  Block block;
  int64_t row_begin, row_end;
  float* scratch;  // block_rows_scratch(block) floats
};
// Rows of one hidden block are computed so many at a time while its ring is in L1, and projected together.
constexpr int64_t kProjectRows = 4;
inline int64_t block_rows_scratch(const Block& b) {
  return hidden_blocks(b) * ring_floats(b) + zero_floats(b) + kProjectRows * b.output_w * round_up(b.hidden, 16);
}
// expand and depthwise of output rows [row_begin, row_end), panels [panel_begin, panel_end) of the hidden channels,
// into a map [H*W][round_up(hidden, 16)] and channel means, or where not all rows are asked for the sums of each row.
struct BlockChannels {
  Block block;
  int64_t panel_begin, panel_end, row_begin, row_end;
  float *map, *means, *row_sums;  // row_sums: [output_h][round_up(hidden, 16)], or null for means
  float* scratch;                 // block_channels_scratch(block) floats
};
inline int64_t block_channels_scratch(const Block& b) { return ring_floats(b) + zero_floats(b); }

// Runs iterations of independent multiply-adds and says how many there were.
struct FmaPeak {
  int64_t iterations;
  int64_t* macs;
};

// A hash of floats in lanes of their own, which the caller mixes.
struct HashLanes {
  static constexpr int kCount = 8;
  const float* data;
  int64_t count;
  uint64_t* sums;  // [kCount]
};

#define MNV3_KERNELS(X)              \
  X(fold_batch_norm, FoldBatchNorm)  \
  X(stem_strip, StemStrip)           \
  X(pointwise, Pointwise)            \
  X(pointwise_tile, PointwiseTile)   \
  X(depthwise_row, DepthwiseRow)     \
  X(depthwise_strip, DepthwiseStrip) \
  X(squeeze_excite_layer, Pointwise) \
  X(channel_means, ChannelMeans)     \
  X(scale_pixels, ScalePixels)       \
  X(block_rows, BlockRows)           \
  X(block_channels, BlockChannels)   \
  X(hash_lanes, HashLanes)           \
  X(fma_peak, FmaPeak)

struct Kernels {
#define MNV3_MEMBER(name, Args) void (*name)(const Args&);
  MNV3_KERNELS(MNV3_MEMBER)
#undef MNV3_MEMBER
};

// The kernels of the instruction set in use.
const Kernels& kernels();

// Declares the kernels of one instruction set, in its namespace.
#define MNV3_DECLARE(name, Args) void name(const Args&);
#define MNV3_DECLARE_KERNELS(isa) \
  namespace isa {                 \
  MNV3_KERNELS(MNV3_DECLARE)      \
  }
#ifdef MNV3_ISA
MNV3_DECLARE_KERNELS(MNV3_ISA)
#endif

}  // namespace mnv3_fast
