// A whole inverted residual block of one image: expand 1x1 -> depthwise -> (gate) -> project 1x1 (+ input).
// Thirty-two hidden channels at a time, the expand conv writes the rows that the depthwise conv is about to read into a
// padded ring, so the hidden map never leaves L1/L2; without squeeze-excite some rows at a time are projected. With it,
// the depthwise map and its channel means are written out, and the caller runs the gate and the projection.
// Bound by the FMA units. See mnv3_fast/ops/inverted_residual/README.md.
#include "kernels.h"
#include "simd/ring.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

// One or two panels of hidden channels, their ring and how far it has been filled.
struct HiddenRing {
  int64_t begin, end;  // panels
  Ring ring;
  int64_t next;
};
constexpr int64_t kBlockPanels = kHiddenBlock / kPanel;

HiddenRing hidden_ring(const Block& b, int64_t panel, int64_t panel_end, float* data, float* zeros, int64_t next) {
  const int64_t end = panel + kBlockPanels < panel_end ? panel + kBlockPanels : panel_end;
  const int64_t channels = (end - panel) * kPanel;  // pixels lie close: with gaps, half of L1 would stay unused
  return {panel, end, {data, zeros, b.window.rows(), b.window.pixels(b.output_w) * channels, channels}, next};
}

void clear_ring(const Block& b, const HiddenRing& state) {
  // Lanes past the last hidden channel are read with the others, so they must hold something harmless.
  if (state.end * kPanel > b.hidden) clear(state.ring.data, state.ring.rows * state.ring.row_floats);
  else clear_borders(state.ring, b.window, b.width, b.window.pixels(b.output_w));
}

// Input rows [fresh.begin, fresh.end) of some hidden channels into their ring.
void fill_rows(const Block& b, const HiddenRing& state, NewRows fresh) {
  const Window& w = b.window;
  const int64_t pixels = w.pixels(b.output_w), inner = inner_pixels(w, b.width, pixels);
  const int64_t first = state.begin * kPanel;
  const int64_t hidden_end = state.end * kPanel < b.hidden ? state.end * kPanel : b.hidden;
  for (int64_t y = fresh.begin; y < fresh.end; y++) {
    const float* input = b.input + y * b.width * b.inputs;
    float* output = state.ring.row(y) + w.pad_left * state.ring.pixel_floats;
    if (b.expand_weight) {
      pointwise({inner, b.inputs, hidden_end, input, b.inputs, b.expand_weight, b.expand_bias, output - first,
                 state.ring.pixel_floats, nullptr, 0, nullptr, nullptr, b.expand_activation, 0, state.begin, state.end,
                 b.stream});
    } else {
      for (int64_t c = first; c < hidden_end; c += kPanel) {
        const int64_t channels = hidden_end - c < kPanel ? hidden_end - c : kPanel;
        gather_pixels(input + c, b.inputs, 1, inner, channels, output + (c - first), state.ring.pixel_floats);
      }
    }
  }
}

// Depthwise output row y of some hidden channels; output is channel 0 of the row, sums those of these channels, or
// null.
void hidden_row(const Block& b, int64_t y, HiddenRing& state, float* output, float* sums) {
  const Window& w = b.window;
  const NewRows fresh = new_rows(w, y, b.height, state.next);
  fill_rows(b, state, fresh);
  if (fresh.end > state.next) state.next = fresh.end;
  const int64_t stride = round_up(b.hidden, kPanel);
  for (int64_t panel = state.begin; panel < state.end; panel++) {
    const int64_t c = panel * kPanel, own = c - state.begin * kPanel;
    const float* taps[kMostKernelRows];
    for (int64_t ky = 0; ky < w.kernel_h; ky++) taps[ky] = state.ring.tap(w, y, ky, b.height) + own;
    depthwise_row({taps, state.ring.pixel_floats, b.output_w, &w, b.depthwise_weight + c * w.kernel_h * w.kernel_w,
                   b.depthwise_bias + c, b.depthwise_activation, output + c, stride, kPanel,
                   sums ? sums + own : nullptr});
  }
}

}  // namespace

void block_rows(const BlockRows& a) {
  record_variant(kInvertedResidual, kThisIsa);
  const Block& b = a.block;
  const int64_t blocks = hidden_blocks(b), stride = round_up(b.hidden, kPanel);
  const int64_t panels = round_up(b.hidden, kPanel) / kPanel;
  float* zeros = a.scratch;
  float* rings = zeros + zero_floats(b);
  float* hidden = rings + blocks * ring_floats(b);
  clear(zeros, zero_floats(b));
  int64_t next = 0;
  const auto ring_of = [&](int64_t block) {
    return hidden_ring(b, block * kBlockPanels, panels, rings + block * ring_floats(b), zeros, next);
  };
  for (int64_t block = 0; block < blocks; block++) clear_ring(b, ring_of(block));
  for (int64_t y = a.row_begin; y < a.row_end; y += kProjectRows) {
    const int64_t end = y + kProjectRows < a.row_end ? y + kProjectRows : a.row_end;
    HiddenRing state = {};
    for (int64_t block = 0; block < blocks; block++) {
      state = ring_of(block);
      for (int64_t row = y; row < end; row++)
        hidden_row(b, row, state, hidden + (row - y) * b.output_w * stride, nullptr);
    }
    next = state.next;
    const float* residual = b.residual ? b.input + y * b.width * b.inputs : nullptr;
    pointwise({(end - y) * b.output_w, b.hidden, b.outputs, hidden, stride, b.project_weight, b.project_bias,
               b.output + y * b.output_w * b.outputs, b.outputs, residual, b.inputs, nullptr, nullptr,
               b.project_activation, 0, 0, round_up(b.outputs, kPanel) / kPanel, b.stream});
  }
}

void block_channels(const BlockChannels& a) {
  record_variant(kInvertedResidual, kThisIsa);
  const Block& b = a.block;
  const int64_t stride = round_up(b.hidden, kPanel);
  float* zeros = a.scratch;
  clear(zeros, zero_floats(b));
  for (int64_t panel = a.panel_begin; panel < a.panel_end; panel += kBlockPanels) {
    HiddenRing state = hidden_ring(b, panel, a.panel_end, zeros + zero_floats(b), zeros, 0);
    clear_ring(b, state);
    double sums[kHiddenBlock] = {};
    for (int64_t y = a.row_begin; y < a.row_end; y++) {
      float row[kHiddenBlock] = {};
      hidden_row(b, y, state, a.map + y * b.output_w * stride, row);
      const int64_t channels = (state.end - panel) * kPanel;
      // The sum of a row first, then of the rows: the order is the same however they are spread over threads.
      for (int64_t i = 0; i < channels; i++) {
        if (a.row_sums) a.row_sums[y * stride + panel * kPanel + i] = row[i];
        sums[i] += row[i];
      }
    }
    if (a.row_sums) continue;
    float* means = a.means + panel * kPanel;
    for (int64_t i = 0; i < (state.end - panel) * kPanel; i++)
      means[i] = float(sums[i] / double(b.output_h * b.output_w));
  }
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
