#include "engine/executor.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "engine/layers.h"
#include "parallel.h"

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

// The map that a plan without a stem reads, as it lies or as a copy.
const float* dense_map(const Batch& batch, int64_t image, float* copy, const Team& team) {
  const float* data = static_cast<const float*>(batch.data) + image * batch.image_stride;
  const int64_t c = batch.channels, w = batch.width;
  if (batch.channel_stride == 1 && batch.pixel_stride == c && batch.row_stride == w * c) return data;
  team.split(batch.height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; y++) {
      kernels().scale_pixels(
          {data + y * batch.row_stride, w, batch.pixel_stride, batch.channel_stride, c, nullptr, copy + y * w * c});
    }
  });
  return copy;
}

// Adds the time of its life to a node's.
class NodeTime {
 public:
  NodeTime(int64_t* nanoseconds, std::size_t node) : total_(nanoseconds ? nanoseconds + node : nullptr) {
    if (total_) start_ = Clock::now();
  }
  ~NodeTime() {
    if (total_) *total_ += std::chrono::nanoseconds(Clock::now() - start_).count();
  }
  NodeTime(const NodeTime&) = delete;
  NodeTime& operator=(const NodeTime&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  int64_t* total_;
  Clock::time_point start_;
};

// All nodes before the first linear layer; the last of them writes to `output`.
void run_image(const Plan& plan, const Batch& batch, int64_t image, float* output, const Team& team,
               int64_t* nanoseconds) {
  Shape shape = {batch.height, batch.width, batch.channels};
  std::size_t count = 0;
  while (count < plan.nodes.size() && plan.nodes[count].kind != kLinearNode) count++;
  int turn = 0;
  const float* map = nullptr;
  if (plan.nodes[0].kind != kStemNode) { map = dense_map(batch, image, team.maps[1], team); }
  for (std::size_t i = 0; i < count; i++) {
    const Node& node = plan.nodes[i];
    const Shape out = output_shape(node, shape);
    const std::size_t last = pools(plan, i) ? i + 1 : i;
    float* to = last + 1 == count ? output : team.maps[turn];
    const NodeTime time(nanoseconds, i);
    if (node.kind == kStemNode) run_stem(node.stem, batch, image, out, to, team);
    const Weights next = last + 1 < plan.nodes.size()
                             ? first_weights(plan.nodes[last + 1], out, output_shape(plan.nodes[last + 1], out), team)
                             : Weights{nullptr, 0};
    if (node.kind == kBlockNode) run_block(node.block, shape, out, map, to, next, team);
    else team.fetch_meanwhile(next);
    if (node.kind == kPoolNode) {
      team.once([&] { mean_of(map, shape.pixels(), shape.channels, shape.channels, to); });
    }
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
                const Team& team, int64_t* nanoseconds) {
  for (int64_t i = begin; i < end; i++) {
    team.stream_plan(plan.data, plan.end);
    run_image(plan, batch, i, output + i * stride, team, nanoseconds);
  }
}

int64_t team_floats(const Sizes& sizes, int threads) {
  Carver carver;
  const Team team(sizes, carver, threads);
  return carver.used();
}

// The classifier over the whole batch; rows[0] holds the features.
void run_classifier(const Plan& plan, std::size_t first, int64_t images, float* const (&rows)[2], float* output,
                    const Team& team, int64_t* nanoseconds) {
  team.stream_plan(nullptr, nullptr);
  for (std::size_t i = first; i < plan.nodes.size(); i++) {
    const NodeTime time(nanoseconds, i);
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

void execute(const Plan& plan, const Batch& batch, float* output, int64_t* nanoseconds) {
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
  const int64_t row = round_up(batch.images * features, 16), one = team_floats(sizes, 1);
  const int64_t side = std::min<int64_t>(threads, batch.images);  // the most that can pass side by side
  float* memory = Arena::get(2 * row + std::max(side > 1 ? one * side : 0, team_floats(sizes, threads)));
  float* const rows[2] = {memory, memory + row};
  memory += 2 * row;
  float* images = features ? rows[0] : output;
  run_crew(threads, [&](Crew& crew, int place) {
    // As many images as threads pass side by side, each on one thread; the rest one by one on all of them.
    const int members = crew.members();
    const int64_t side_by_side = members > 1 ? batch.images - batch.images % members : 0;
    int64_t* times = place == 0 ? nanoseconds : nullptr;
    if (side_by_side) {
      Carver carver(memory + place * one);
      run_images(plan, batch, side_by_side * place / members, side_by_side * (place + 1) / members, images, stride,
                 Team(sizes, carver), times);
      crew.barrier();
    }
    Carver carver(memory);
    const Team team(sizes, carver, members, place, &crew);
    run_images(plan, batch, side_by_side, batch.images, images, stride, team, times);
    if (features) run_classifier(plan, first_linear, batch.images, rows, output, team, times);
  });
}

}  // namespace mnv3_fast
