// A whole inverted residual block of one image: expand 1x1 -> depthwise -> (gate) -> project 1x1 (+ input).
// Thirty-two hidden channels at a time, the expand conv writes the rows that the depthwise conv is about to read into a
// padded ring, so the hidden map never leaves L1/L2; without squeeze-excite each row is projected at once. With it, the
// depthwise map and its channel means are written out, and the caller runs the gate and the projection.
// Bound by the FMA units. See mnv3_fast/ops/inverted_residual/README.md.
#include "kernels.h"
#include "simd/ring.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

// The ring of one block of hidden channels and how far it has been filled.
struct HiddenRing {
  Ring ring;
  int64_t next;
};

Ring make_ring(const Block& b, int64_t block, float* data, float* zeros) {
  const int64_t pixels = b.window.pixels(b.output_w);
  const Ring ring = {data, zeros, b.window.rows(), pixels * kHiddenBlock, kHiddenBlock};
  // Lanes past the last hidden channel are read with the others, so they must hold something harmless.
  if ((block + 1) * kHiddenBlock > b.hidden) clear(data, ring_floats(b));
  else clear_borders(ring, b.window, b.width, pixels);
  return ring;
}

// Input rows [fresh.begin, fresh.end) of hidden block `block` into its ring.
void fill_rows(const Block& b, int64_t block, const Ring& ring, NewRows fresh) {
  const Window& w = b.window;
  const int64_t pixels = w.pixels(b.output_w), inner = inner_pixels(w, b.width, pixels);
  const int64_t first = block * kHiddenBlock, panels = round_up(b.hidden, kPanel) / kPanel;
  for (int64_t y = fresh.begin; y < fresh.end; y++) {
    const float* input = b.input + y * b.width * b.inputs;
    float* output = ring.row(y) + w.pad_left * kHiddenBlock;
    if (b.expand_weight) {
      const int64_t begin = first / kPanel, end = begin + 2 < panels ? begin + 2 : panels;
      const int64_t outputs = end * kPanel < b.hidden ? end * kPanel : b.hidden;
      pointwise({inner, b.inputs, outputs, input, b.inputs, b.expand_weight, b.expand_bias, output - first,
                 kHiddenBlock, nullptr, 0, nullptr, nullptr, b.expand_activation, 0, begin, end, b.stream});
    } else {
      for (int64_t c = first; c < b.hidden && c < first + kHiddenBlock; c += kPanel) {
        const int64_t channels = b.hidden - c < kPanel ? b.hidden - c : kPanel;
        gather_pixels(input + c, b.inputs, 1, inner, channels, output + (c - first), kHiddenBlock);
      }
    }
  }
}

// Depthwise output row y of hidden block `block`; output is channel 0 of the row, sums those of the block's channels,
// or null.
void hidden_row(const Block& b, int64_t block, int64_t y, HiddenRing& state, float* output, double* sums) {
  const Window& w = b.window;
  const NewRows fresh = new_rows(w, y, b.height, state.next);
  fill_rows(b, block, state.ring, fresh);
  if (fresh.end > state.next) state.next = fresh.end;
  const int64_t stride = round_up(b.hidden, kHiddenBlock);
  for (int64_t c = block * kHiddenBlock; c < b.hidden && c < (block + 1) * kHiddenBlock; c += kPanel) {
    const float* taps[kMostKernelRows];
    for (int64_t ky = 0; ky < w.kernel_h; ky++) taps[ky] = state.ring.tap(w, y, ky, b.height) + c % kHiddenBlock;
    float sum[kPanel] = {};
    depthwise_row({taps, kHiddenBlock, b.output_w, &w, b.depthwise_weight + c * w.kernel_h * w.kernel_w,
                   b.depthwise_bias + c, b.depthwise_activation, output + c, stride, kPanel, sums ? sum : nullptr});
    // The sum of a row first, then of the rows: the order is the same however rows are spread over threads.
    if (sums)
      for (int i = 0; i < kPanel; i++) sums[c % kHiddenBlock + i] += sum[i];
  }
}

}  // namespace

void block_rows(const BlockRows& a) {
  record_variant(kInvertedResidual, kThisIsa);
  const Block& b = a.block;
  const int64_t blocks = hidden_blocks(b), stride = round_up(b.hidden, kHiddenBlock);
  float* zeros = a.scratch;
  float* rings = zeros + zero_floats(b);
  float* hidden = rings + blocks * ring_floats(b);
  clear(zeros, zero_floats(b));
  int64_t next = 0;
  for (int64_t block = 0; block < blocks; block++) make_ring(b, block, rings + block * ring_floats(b), zeros);
  for (int64_t y = a.row_begin; y < a.row_end; y++) {
    HiddenRing state = {};
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t pixels = b.window.pixels(b.output_w);
      state = {{rings + block * ring_floats(b), zeros, b.window.rows(), pixels * kHiddenBlock, kHiddenBlock}, next};
      hidden_row(b, block, y, state, hidden, nullptr);
    }
    next = state.next;
    const float* residual = b.residual ? b.input + y * b.width * b.inputs : nullptr;
    pointwise({b.output_w, b.hidden, b.outputs, hidden, stride, b.project_weight, b.project_bias,
               b.output + y * b.output_w * b.outputs, b.outputs, residual, b.inputs, nullptr, nullptr,
               b.project_activation, 0, 0, round_up(b.outputs, kPanel) / kPanel, b.stream});
  }
}

void block_channels(const BlockChannels& a) {
  record_variant(kInvertedResidual, kThisIsa);
  const Block& b = a.block;
  const int64_t stride = round_up(b.hidden, kHiddenBlock);
  float* zeros = a.scratch;
  clear(zeros, zero_floats(b));
  for (int64_t block = a.block_begin; block < a.block_end; block++) {
    HiddenRing state = {make_ring(b, block, zeros + zero_floats(b), zeros), 0};
    double sums[kHiddenBlock] = {};
    for (int64_t y = 0; y < b.output_h; y++) hidden_row(b, block, y, state, a.map + y * b.output_w * stride, sums);
    float* means = a.means + block * kHiddenBlock;
    for (int64_t i = 0; i < kHiddenBlock; i++) means[i] = float(sums[i] / double(b.output_h * b.output_w));
  }
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
