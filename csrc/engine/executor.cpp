#include "engine/executor.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "engine/layers.h"

namespace mnv3_fast {
namespace {

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

const float* dense_map(const Batch& batch, int64_t image, float* copy) {
  const float* data = static_cast<const float*>(batch.data) + image * batch.image_stride;
  const int64_t c = batch.channels, w = batch.width;
  if (batch.channel_stride == 1 && batch.pixel_stride == c && batch.row_stride == w * c) return data;
  for (int64_t y = 0; y < batch.height; y++) {
    kernels().scale_pixels(
        {data + y * batch.row_stride, w, batch.pixel_stride, batch.channel_stride, c, nullptr, copy + y * w * c});
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
  if (plan.nodes[0].kind != kStemNode) { map = dense_map(batch, image, team.maps[1]); }
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
void run_classifier(const Plan& plan, std::size_t first, int64_t images, float* const (&rows)[2], float* output,
                    int threads) {
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
      run_images(plan, batch, side_by_side * t / threads, side_by_side * (t + 1) / threads, images, stride, sizes, 1,
                 memory + t * one);
    });
  }
  run_images(plan, batch, side_by_side, batch.images, images, stride, sizes, threads, memory);
  if (features) run_classifier(plan, first_linear, batch.images, rows, output, threads);
}

}  // namespace mnv3_fast
