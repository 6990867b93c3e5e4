#include "engine/layers.h"

#include <cmath>

namespace mnv3_fast {

Block block_of(const BlockNode& b, Shape in, Shape out, const float* input, float* output, WeightStream* stream) {
  return {input,
          in.height,
          in.width,
          b.inputs,
          b.hidden,
          b.outputs,
          out.height,
          out.width,
          b.window.for_input(in.height, in.width),
          b.expand_weight,
          b.expand_bias,
          b.depthwise_weight,
          b.depthwise_bias,
          b.project_weight,
          b.project_bias,
          b.expand_activation,
          b.depthwise_activation,
          b.project_activation,
          b.residual,
          output,
          stream};
}

// One fully connected layer over `images` rows, panels over threads. A single row takes four panels at a time.
void run_linear(const LinearNode& l, int64_t images, const float* input, int64_t input_stride, float* output,
                int64_t output_stride, int activation, float slope, const Team& team) {
  const int64_t panels = round_up(l.outputs, 16) / 16;
  const bool small = l.inputs * l.outputs * images < 1 << 12;  // less work than the sum is worth
  team.split(panels,
             small         ? panels
             : images == 1 ? 4
                           : 2,
             [&](int64_t begin, int64_t end) {
               kernels().squeeze_excite_layer({images, l.inputs, l.outputs, input, input_stride, l.weight, l.bias,
                                               output, output_stride, nullptr, 0, nullptr, nullptr, activation, slope,
                                               begin, end, team.weights()});
             });
}

namespace {

// Kernels take two panels at a time. Over threads they are split in two where the most that one thread gets is less
// then.
int64_t panel_unit(int64_t panels, const Team& team) {
  const int64_t pairs = (panels + 1) / 2, most = 2 * ((pairs + team.threads - 1) / team.threads);
  return (panels + team.threads - 1) / team.threads < most ? 1 : 2;
}

}  // namespace

// A 1x1 conv of one image: pixels over threads where there are enough of them, else output channels.
void run_pointwise(const LinearNode& l, int64_t pixels, const float* input, int64_t input_stride, const float* gate,
                   const float* residual, float* output, const Team& team) {
  const int64_t panels = round_up(l.outputs, 16) / 16;
  const auto run = [&](int64_t first, int64_t count, int64_t begin, int64_t end) {
    kernels().pointwise({count, l.inputs, l.outputs, input + first * input_stride, input_stride, l.weight, l.bias,
                         output + first * l.outputs, l.outputs, residual ? residual + first * l.outputs : nullptr,
                         l.outputs, gate, team.scratch, l.activation, 0, begin, end, team.weights()});
  };
  if (pixels >= 56 * team.threads) {
    team.split(pixels, 14, [&](int64_t a, int64_t b) { run(a, b - a, 0, panels); });
  } else {
    team.split(panels, panel_unit(panels, team), [&](int64_t a, int64_t b) { run(0, pixels, a, b); });
  }
}

namespace {

// What a float costs that another core has just written, in multiply-adds that take as long (15 ns a line of 16 floats
// beside 90 G multiply-adds a second, on Emerald Rapids, would be 84).
constexpr double kFromAnotherCore = 40;

// Whether the rows of a block are shared out, not its hidden channels. Rows next to another thread's are expanded
// twice; hidden channels need the whole input, and their map is read by rows again.
bool by_rows(const BlockNode& b, Shape out, const Team& team) {
  if (team.threads == 1) return true;
  const double threads = team.threads, panels = double(round_up(b.hidden, 16) / 16);
  const double input_rows = double(out.height * b.window.stride_h);
  const double row = double(out.width * b.window.stride_w * b.inputs);  // of the input, in floats
  const double row_macs = b.expand_weight ? row * double(b.hidden) : 0;
  const double twice = std::max<double>(0, double(b.window.rows() - b.window.stride_h)) / (team.threads == 2 ? 2 : 1);
  const double uneven_rows = std::ceil(double(out.height) / threads) - double(out.height) / threads;
  const double uneven_panels = (std::ceil(panels / threads) - panels / threads) / panels;
  const double others = (row * input_rows + double(out.pixels() * b.hidden) / threads) * (1 - 1 / threads);
  return (twice + uneven_rows * double(b.window.stride_h)) * row_macs <
         uneven_panels * row_macs * input_rows + kFromAnotherCore * others;
}

Weights panels_of(const float* weight, int64_t inputs, Part panels) {
  return {weight + panels.begin * 16 * inputs, (panels.end - panels.begin) * 16 * inputs};
}

}  // namespace

Weights first_weights(const Node& node, Shape out, const Team& team) {
  if (node.kind == kBlockNode) {
    const BlockNode& b = node.block;
    if (!b.expand_weight) return {nullptr, 0};
    const int64_t panels = round_up(b.hidden, 16) / 16;
    if (by_rows(b, out, team)) return panels_of(b.expand_weight, b.inputs, {0, panels});
    return panels_of(b.expand_weight, b.inputs, team.part(panels, panel_unit(panels, team)));
  }
  if (node.kind != kPointwiseNode && node.kind != kLinearNode) return {nullptr, 0};
  const int64_t panels = round_up(node.linear.outputs, 16) / 16,
                unit = node.kind == kLinearNode ? 4 : panel_unit(panels, team);
  return panels_of(node.linear.weight, node.linear.inputs, team.part(panels, unit));
}

namespace {

// The channel means of one map from the sums of its rows.
void mean_of_rows(const float* sums, int64_t rows, int64_t stride, int64_t count, Part channels, float* means) {
  for (int64_t c = channels.begin; c < channels.end; c++) {
    double total = 0;
    for (int64_t y = 0; y < rows; y++) total += sums[y * stride + c];
    means[c] = float(total / double(count));
  }
}

// The expand and depthwise convs of `images` images into their hidden maps, and the channel means.
template <class BlockOf>
void run_hidden(const BlockNode& node, int64_t images, Shape out, const BlockOf& block, const Team& team) {
  const int64_t stride = round_up(node.hidden, 16), panels = round_up(node.hidden, 16) / 16;
  if (team.threads > 1 && by_rows(node, out, team)) {
    team.split(out.height, 1, [&](int64_t begin, int64_t end) {
      kernels().block_channels({block(0), 0, panels, begin, end, team.hidden, team.means, team.row_sums, team.scratch});
    });
    team.split(node.hidden, 16, [&](int64_t begin, int64_t end) {
      mean_of_rows(team.row_sums, out.height, stride, out.pixels(), {begin, end}, team.means);
    });
    return;
  }
  team.split(panels, panel_unit(panels, team), [&](int64_t begin, int64_t end) {
    // The weights of two panels stay in L1 while the images pass.
    const int64_t step = images > 1 ? 2 : end - begin;
    for (int64_t p = begin; p < end; p += step) {
      for (int64_t i = 0; i < images; i++)
        kernels().block_channels({block(i), p, std::min(p + step, end), 0, out.height,
                                  team.hidden + i * out.pixels() * stride, team.means + i * stride, nullptr,
                                  team.scratch});
    }
  });
}

// The gates of `images` images from their channel means.
void run_gate(const BlockNode& node, int64_t images, const Team& team) {
  const int64_t means_stride = round_up(node.hidden, 16), squeeze_stride = round_up(node.squeeze, 16);
  const LinearNode fc1 = {node.hidden, node.squeeze, node.squeeze_activation, node.fc1_weight, node.fc1_bias};
  const LinearNode fc2 = {node.squeeze, node.hidden, node.gate, node.fc2_weight, node.fc2_bias};
  run_linear(fc1, images, team.means, means_stride, team.squeeze, squeeze_stride, fc1.activation, 0, team);
  run_linear(fc2, images, team.squeeze, squeeze_stride, team.gate, node.hidden, node.gate, node.slope, team);
}

}  // namespace

void run_block(const BlockNode& node, int64_t images, Shape in, Shape out, const float* input, float* output,
               Weights next, const Team& team) {
  const int64_t squeeze_panels = round_up(node.squeeze, 16) / 16, project_panels = round_up(node.outputs, 16) / 16;
  const Weights project_weights = panels_of(node.project_weight, node.hidden, {0, project_panels});
  const bool whole = !node.squeeze && by_rows(node, out, team);  // all three convs at once
  if (whole) team.fetch_meanwhile(next);
  else if (node.squeeze) team.fetch_meanwhile(panels_of(node.fc1_weight, node.hidden, team.part(squeeze_panels, 4)));
  else team.fetch_meanwhile(project_weights);
  const auto block = [&](int64_t image) {
    return block_of(node, in, out, input + image * in.floats(), output + image * out.floats(), team.weights());
  };
  if (whole) {
    team.split(out.height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < images; i++) kernels().block_rows({block(i), begin, end, team.scratch});
    });
    return;
  }
  run_hidden(node, images, out, block, team);
  if (node.squeeze) run_gate(node, images, team);
  team.fetch_meanwhile(next);
  const float* gate = node.squeeze ? team.gate : nullptr;
  const int64_t stride = round_up(node.hidden, 16);
  int64_t hidden_stride = stride;
  if (images > 1 && gate) {  // each has a gate of its own
    for (int64_t i = 0; i < images; i++)
      kernels().scale_pixels({team.hidden + i * out.pixels() * stride, out.pixels(), stride, 1, node.hidden,
                              gate + i * node.hidden, team.hidden + i * out.pixels() * node.hidden});
    hidden_stride = node.hidden;
    gate = nullptr;
  }
  const LinearNode project = {node.hidden, node.outputs, node.project_activation, node.project_weight,
                              node.project_bias};
  run_pointwise(project, images * out.pixels(), team.hidden, hidden_stride, gate, node.residual ? input : nullptr,
                output, team);
}

void run_stem(const StemNode& node, const Batch& batch, int64_t image, Shape out, float* output, const Team& team) {
  const int64_t offset = image * batch.image_stride;
  const void* data = batch.bytes ? static_cast<const void*>(static_cast<const uint8_t*>(batch.data) + offset)
                                 : static_cast<const void*>(static_cast<const float*>(batch.data) + offset);
  const Window window = node.window.for_input(batch.height, batch.width);
  team.split(out.height, 1, [&](int64_t begin, int64_t end) {
    kernels().stem_strip({data,
                          batch.bytes,
                          batch.row_stride,
                          batch.pixel_stride,
                          batch.channel_stride,
                          batch.height,
                          batch.width,
                          node.inputs,
                          node.outputs,
                          node.scale,
                          node.shift,
                          window,
                          node.weight,
                          node.bias,
                          node.activation,
                          output,
                          out.width,
                          begin,
                          end,
                          team.scratch});
  });
}

void mean_of(const float* input, int64_t pixels, int64_t stride, int64_t channels, float* means) {
  kernels().channel_means({{input, 0, stride, 1}, 1, pixels, channels, pixels, means});
}

// 1x1 conv and pool: 32 channels of the conv's map at a time, in scratch.
void run_pooled(const LinearNode& l, int64_t images, int64_t pixels, const float* input, float* means,
                const Team& team) {
  const int64_t panels = round_up(l.outputs, 16) / 16;
  team.split(panels, 2, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p += 2) {
      const int64_t first = p * 16,
                    channels = std::min<int64_t>(std::min<int64_t>(32, (end - p) * 16), l.outputs - first);
      for (int64_t i = 0; i < images; i++) {
        kernels().pointwise({pixels, l.inputs, l.outputs, input + i * pixels * l.inputs, l.inputs, l.weight, l.bias,
                             team.scratch - first, 32, nullptr, 0, nullptr, nullptr, l.activation, 0, p,
                             std::min(p + 2, end), team.weights()});
        mean_of(team.scratch, pixels, 32, channels, means + i * l.outputs + first);
      }
    }
  });
}

}  // namespace mnv3_fast
