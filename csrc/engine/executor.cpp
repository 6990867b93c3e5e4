#include "engine/executor.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "arena.h"
#include "parallel.h"

namespace mnv3_fast {
namespace {

struct Shape {
  int64_t height, width, channels;
  int64_t pixels() const { return height * width; }
  int64_t floats() const { return height * width * channels; }
};

Shape output_shape(const Node& node, Shape in) {
  switch (node.kind) {
    case kStemNode:
      return {node.stem.window.output_h(in.height), node.stem.window.output_w(in.width), node.stem.outputs};
    case kBlockNode:
      return {node.block.window.output_h(in.height), node.block.window.output_w(in.width), node.block.outputs};
    case kPoolNode: return {1, 1, in.channels};
    default: return {in.height, in.width, node.linear.outputs};
  }
}

Block block_of(const BlockNode& b, Shape in, Shape out, const float* input, float* output, WeightStream* stream) {
  return {input,           in.height,          in.width,           b.inputs,           b.hidden,
          b.outputs,       out.height,         out.width,          b.window,           b.expand_weight,
          b.expand_bias,   b.depthwise_weight, b.depthwise_bias,   b.project_weight,   b.project_bias,
          b.expand_activation, b.depthwise_activation, b.project_activation, b.residual, output, stream};
}

// Floats that one image needs while it passes: each of two maps, what a block with squeeze-excite keeps, and a thread's scratch.
struct Sizes {
  int64_t map = 0, hidden = 0, vector = 0, squeeze = 0, scratch = 0;
};

// A 1x1 conv and the pool after it run as one: the conv's map lives in scratch, 32 channels at a time.
bool pools(const Plan& plan, std::size_t i) {
  return plan.nodes[i].kind == kPointwiseNode && i + 1 < plan.nodes.size() && plan.nodes[i + 1].kind == kPoolNode;
}

Sizes measure(const Plan& plan, Shape shape, bool copies_input) {
  Sizes s;
  if (copies_input) s.map = shape.floats();
  for (std::size_t i = 0; i < plan.nodes.size() && plan.nodes[i].kind != kLinearNode; i++) {
    const Node& node = plan.nodes[i];
    const Shape out = output_shape(node, shape);
    if (node.kind == kStemNode) {
      s.scratch = std::max(s.scratch, stem_scratch(node.stem.window, node.stem.inputs, out.width));
    } else if (node.kind == kBlockNode) {
      const Block b = block_of(node.block, shape, out, nullptr, nullptr, nullptr);
      const int64_t stride = round_up(b.hidden, kHiddenBlock);
      s.hidden = std::max(s.hidden, out.pixels() * stride);
      s.vector = std::max(s.vector, stride);
      s.squeeze = std::max(s.squeeze, round_up(node.block.squeeze, 16));
      s.scratch = std::max({s.scratch, block_rows_scratch(b), block_channels_scratch(b), pointwise_scratch(b.hidden)});
    } else if (pools(plan, i)) {
      s.scratch = std::max(s.scratch, shape.pixels() * 32);
    }
    if (!pools(plan, i)) s.map = std::max(s.map, out.floats());
    shape = out;
  }
  return s;
}

// The threads that work on one image together and their part of the arena.
struct Team {
  int threads;
  mutable WeightStream stream;
  float *maps[2], *hidden, *means, *squeeze, *gate, *scratch;
  int64_t scratch_floats;

  Team(const Sizes& s, int team_threads, Carver& carver) : threads(team_threads), stream{nullptr, nullptr} {
    maps[0] = carver.take(s.map);
    maps[1] = carver.take(s.map);
    hidden = carver.take(s.hidden);
    means = carver.take(s.vector);
    squeeze = carver.take(s.squeeze);
    gate = carver.take(s.vector);
    scratch_floats = round_up(s.scratch, 16);
    scratch = carver.take(scratch_floats * threads);
  }
  // With several threads each would fetch what the others read.
  WeightStream* weights() const { return threads == 1 && stream.end ? &stream : nullptr; }
  float* scratch_of(int64_t chunk) const { return scratch + chunk * scratch_floats; }

  // f(begin, end, scratch) over [0, n) in at most `threads` parts, each a multiple of `unit` but for the last.
  template <class F>
  void split(int64_t n, int64_t unit, const F& f) const {
    const int64_t units = (n + unit - 1) / unit, chunks = std::min<int64_t>(threads, units);
    if (chunks <= 1) {
      if (n > 0) f(int64_t{0}, n, scratch_of(0));
      return;
    }
    parallel_for(chunks, [&](int64_t c) {
      f(std::min(n, units * c / chunks * unit), std::min(n, units * (c + 1) / chunks * unit), scratch_of(c));
    });
  }
};

// One fully connected layer over `images` rows, panels over threads. A single row takes four panels at a time.
void run_linear(const LinearNode& l, int64_t images, const float* input, int64_t input_stride, float* output,
                int64_t output_stride, int activation, float slope, const Team& team) {
  const int64_t panels = round_up(l.outputs, 16) / 16;
  const bool small = l.inputs * l.outputs * images < 1 << 15;  // less work than waking a thread costs
  team.split(panels, small ? panels : images == 1 ? 4 : 2, [&](int64_t begin, int64_t end, float*) {
    kernels().squeeze_excite_layer({images, l.inputs, l.outputs, input, input_stride, l.weight, l.bias, output, output_stride,
                                    nullptr, 0, nullptr, nullptr, activation, slope, begin, end, team.weights()});
  });
}

// A 1x1 conv of one image: pixels over threads where there are enough of them, else output channels.
void run_pointwise(const LinearNode& l, int64_t pixels, const float* input, int64_t input_stride, const float* gate,
                   const float* residual, float* output, const Team& team) {
  const int64_t panels = round_up(l.outputs, 16) / 16;
  const auto run = [&](int64_t first, int64_t count, int64_t begin, int64_t end, float* scratch) {
    kernels().pointwise({count, l.inputs, l.outputs, input + first * input_stride, input_stride, l.weight, l.bias,
                         output + first * l.outputs, l.outputs, residual ? residual + first * l.outputs : nullptr, l.outputs,
                         gate, scratch, l.activation, 0, begin, end, team.weights()});
  };
  if (pixels >= 56 * team.threads) {
    team.split(pixels, 14, [&](int64_t a, int64_t b, float* scratch) { run(a, b - a, 0, panels, scratch); });
  } else {
    team.split(panels, 2, [&](int64_t a, int64_t b, float* scratch) { run(0, pixels, a, b, scratch); });
  }
}

void run_block(const BlockNode& node, Shape in, Shape out, const float* input, float* output, const Team& team) {
  const Block block = block_of(node, in, out, input, output, team.weights());
  if (!node.squeeze && (team.threads == 1 || out.height >= 14 * team.threads)) {
    team.split(out.height, 1, [&](int64_t begin, int64_t end, float* scratch) {
      kernels().block_rows({block, begin, end, scratch});
    });
    return;
  }
  team.split(hidden_blocks(block), 1, [&](int64_t begin, int64_t end, float* scratch) {
    kernels().block_channels({block, begin, end, team.hidden, team.means, scratch});
  });
  const float* gate = nullptr;
  if (node.squeeze) {
    const LinearNode fc1 = {node.hidden, node.squeeze, node.squeeze_activation, node.fc1_weight, node.fc1_bias};
    const LinearNode fc2 = {node.squeeze, node.hidden, node.gate, node.fc2_weight, node.fc2_bias};
    run_linear(fc1, 1, team.means, 0, team.squeeze, 0, fc1.activation, 0, team);
    run_linear(fc2, 1, team.squeeze, 0, team.gate, 0, node.gate, node.slope, team);
    gate = team.gate;
  }
  const LinearNode project = {node.hidden, node.outputs, node.project_activation, node.project_weight, node.project_bias};
  run_pointwise(project, out.pixels(), team.hidden, round_up(node.hidden, kHiddenBlock), gate,
                node.residual ? input : nullptr, output, team);
}

void run_stem(const StemNode& node, const Batch& batch, int64_t image, Shape out, float* output, const Team& team) {
  const int64_t offset = image * batch.image_stride;
  const void* data = batch.bytes ? static_cast<const void*>(static_cast<const uint8_t*>(batch.data) + offset)
                                 : static_cast<const void*>(static_cast<const float*>(batch.data) + offset);
  team.split(out.height, 1, [&](int64_t begin, int64_t end, float* scratch) {
    kernels().stem_strip({data, batch.bytes, batch.row_stride, batch.pixel_stride, batch.channel_stride, batch.height,
                          batch.width, node.inputs, node.outputs, node.scale, node.shift, node.window, node.weight,
                          node.bias, node.activation, output, out.width, begin, end, scratch});
  });
}

void mean_of(const float* input, int64_t pixels, int64_t stride, int64_t channels, float* means) {
  std::fill(means, means + channels, 0.0f);
  kernels().channel_sums({input, pixels, stride, 1, channels, means});
  for (int64_t c = 0; c < channels; c++) means[c] /= static_cast<float>(pixels);
}

// 1x1 conv and pool: 32 channels of the conv's map at a time, in scratch.
void run_pooled(const LinearNode& l, int64_t pixels, const float* input, float* means, const Team& team) {
  const int64_t panels = round_up(l.outputs, 16) / 16;
  team.split(panels, 2, [&](int64_t begin, int64_t end, float* scratch) {
    for (int64_t p = begin; p < end; p += 2) {
      const int64_t first = p * 16, channels = std::min<int64_t>(std::min<int64_t>(32, (end - p) * 16), l.outputs - first);
      kernels().pointwise({pixels, l.inputs, l.outputs, input, l.inputs, l.weight, l.bias, scratch - first, 32, nullptr, 0,
                           nullptr, nullptr, l.activation, 0, p, std::min(p + 2, end), team.weights()});
      mean_of(scratch, pixels, 32, channels, means + first);
    }
  });
}

const float* dense_map(const Batch& batch, int64_t image, float* copy) {
  const float* data = static_cast<const float*>(batch.data) + image * batch.image_stride;
  const int64_t c = batch.channels, w = batch.width;
  if (batch.channel_stride == 1 && batch.pixel_stride == c && batch.row_stride == w * c) return data;
  for (int64_t y = 0; y < batch.height; y++) {
    kernels().scale_pixels({data + y * batch.row_stride, w, batch.pixel_stride, batch.channel_stride, c, nullptr, copy + y * w * c});
  }
  return copy;
}

// All nodes before the first linear layer; the last of them writes to `output`.
void run_image(const Plan& plan, const Batch& batch, int64_t image, float* output, const Team& team) {
  Shape shape = {batch.height, batch.width, batch.channels};
  std::size_t count = 0;
  while (count < plan.nodes.size() && plan.nodes[count].kind != kLinearNode) count++;
  int turn = 0;
  const float* map = nullptr;
  if (plan.nodes[0].kind != kStemNode) {
    map = dense_map(batch, image, team.maps[1]);
  }
  for (std::size_t i = 0; i < count; i++) {
    const Node& node = plan.nodes[i];
    const Shape out = output_shape(node, shape);
    const std::size_t last = pools(plan, i) ? i + 1 : i;
    float* to = last + 1 == count ? output : team.maps[turn];
    if (node.kind == kStemNode) run_stem(node.stem, batch, image, out, to, team);
    if (node.kind == kBlockNode) run_block(node.block, shape, out, map, to, team);
    if (node.kind == kPoolNode) mean_of(map, shape.pixels(), shape.channels, shape.channels, to);
    if (node.kind == kPointwiseNode) {
      if (last > i) run_pooled(node.linear, shape.pixels(), map, to, team);
      else run_pointwise(node.linear, shape.pixels(), map, node.linear.inputs, nullptr, nullptr, to, team);
    }
    i = last;
    map = to;
    shape = out;
    turn ^= 1;
  }
}

// Images [begin, end) with one team.
void run_images(const Plan& plan, const Batch& batch, int64_t begin, int64_t end, float* output, int64_t stride,
                const Sizes& sizes, int threads, float* memory) {
  Carver carver(memory);
  const Team team(sizes, threads, carver);
  for (int64_t i = begin; i < end; i++) {
    team.stream = {plan.data, plan.end};
    run_image(plan, batch, i, output + i * stride, team);
  }
}

int64_t team_floats(const Sizes& sizes, int threads) {
  Carver carver;
  Team(sizes, threads, carver);
  return carver.used();
}

// The classifier over the whole batch; rows[0] holds the features.
void run_classifier(const Plan& plan, std::size_t first, int64_t images, float* const (&rows)[2], float* output, int threads) {
  Carver none;
  const Team team(Sizes{}, threads, none);
  for (std::size_t i = first; i < plan.nodes.size(); i++) {
    const LinearNode& l = plan.nodes[i].linear;
    const float* from = rows[(i - first) % 2];
    float* to = i + 1 == plan.nodes.size() ? output : rows[(i - first + 1) % 2];
    run_linear(l, images, from, l.inputs, to, l.outputs, l.activation, 0, team);
  }
}

}  // namespace

void output_size(const Plan& plan, int64_t& height, int64_t& width) {
  Shape shape = {height, width, plan.input_channels};
  for (const Node& node : plan.nodes) {
    if (node.kind == kLinearNode) break;
    shape = output_shape(node, shape);
    if (shape.height <= 0 || shape.width <= 0) {
      throw std::runtime_error("run_plan: an input of " + std::to_string(height) + " x " + std::to_string(width) +
                               " pixels is too small, a map on the way would be empty");
    }
  }
  height = shape.height;
  width = shape.width;
}

void execute(const Plan& plan, const Batch& batch, float* output) {
  if (batch.images == 0) return;
  std::size_t first_linear = 0;
  while (first_linear < plan.nodes.size() && plan.nodes[first_linear].kind != kLinearNode) first_linear++;
  int64_t features = 0;
  for (std::size_t i = first_linear; i < plan.nodes.size(); i++) {
    features = std::max({features, plan.nodes[i].linear.inputs, plan.nodes[i].linear.outputs});
  }
  int64_t height = batch.height, width = batch.width;
  output_size(plan, height, width);
  const int64_t stride = features ? plan.nodes[first_linear].linear.inputs : height * width * plan.output_channels;

  const int threads = thread_count();
  const Sizes sizes = measure(plan, {batch.height, batch.width, batch.channels}, plan.nodes[0].kind != kStemNode);
  // As many images as threads pass side by side, each on one thread; the rest one by one on all of them.
  const int64_t side_by_side = threads > 1 ? batch.images - batch.images % threads : 0;
  const int64_t row = round_up(batch.images * features, 16), one = team_floats(sizes, 1);
  float* memory = Arena::get(2 * row + std::max(side_by_side ? one * threads : 0, team_floats(sizes, threads)));
  float* const rows[2] = {memory, memory + row};
  memory += 2 * row;
  float* images = features ? rows[0] : output;
  if (side_by_side) {
    parallel_for(threads, [&](int64_t t) {
      run_images(plan, batch, side_by_side * t / threads, side_by_side * (t + 1) / threads, images, stride, sizes, 1, memory + t * one);
    });
  }
  run_images(plan, batch, side_by_side, batch.images, images, stride, sizes, threads, memory);
  if (features) run_classifier(plan, first_linear, batch.images, rows, output, threads);
}

}  // namespace mnv3_fast
