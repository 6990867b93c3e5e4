#include "engine/executor.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "engine/layers.h"
#include "parallel.h"

namespace mnv3_fast {
namespace {

Shape convolved(const Window& window, Shape in, int64_t channels) {
  const Window w = window.for_input(in.height, in.width);
  return {w.output_h(in.height), w.output_w(in.width), channels};
}

Shape output_shape(const Node& node, Shape in) {
  switch (node.kind) {
    case kStemNode: return convolved(node.stem.window, in, node.stem.outputs);
    case kBlockNode: return convolved(node.block.window, in, node.block.outputs);
    case kPoolNode: return {1, 1, in.channels};
    default: return {in.height, in.width, node.linear.outputs};
  }
}

// A 1x1 conv and the pool after it run as one: the conv's map lives in scratch, 32 channels at a time.
bool pools(const Plan& plan, std::size_t i) {
  return plan.nodes[i].kind == kPointwiseNode && i + 1 < plan.nodes.size() && plan.nodes[i + 1].kind == kPoolNode;
}

// Nodes [0, count) run before the first linear layer, those from `first` (a block) on over up to `images` images at a
// time. Late layers have small maps and large weights: these are read once a group, not once an image.
struct Grouping {
  std::size_t count, first;
  int64_t images;
};
constexpr int64_t kMostImages = 4;
// The hidden maps of a group stay in L2, more or less: as many floats as four maps of 14 x 14 x 256.
constexpr int64_t kGroupFloats = 4 * 14 * 14 * 256;

int64_t weights(const BlockNode& b) {
  return b.hidden * (b.inputs + b.window.kernel_h * b.window.kernel_w + 2 * b.squeeze + b.outputs);
}

Grouping group(const Plan& plan, Shape shape, int64_t images) {
  Grouping found = {0, 0, 1};
  while (found.count < plan.nodes.size() && plan.nodes[found.count].kind != kLinearNode) found.count++;
  found.first = found.count;
  for (int64_t n = std::min(images, kMostImages); n > 1; n--) {
    std::size_t first = 0;
    bool gains = false;  // from `first` on
    Shape in = shape;
    for (std::size_t i = 0; i < found.count; i++) {
      const Node& node = plan.nodes[i];
      const Shape out = output_shape(node, in);
      if (i > 0 && node.kind == kBlockNode && node.block.squeeze) {  // node 0 reads images as they came
        const int64_t hidden = out.pixels() * round_up(node.block.hidden, 16);
        const bool gains_here = n * hidden <= kGroupFloats && weights(node.block) >= 4 * hidden;
        if (gains_here && !gains) first = i;
        gains = gains_here;
      }
      in = out;
    }
    if (gains) return {found.count, first, n};
  }
  return found;
}

Sizes measure(const Plan& plan, Shape shape, const Grouping& grouping) {
  Sizes s;
  if (plan.nodes[0].kind != kStemNode) s.map = shape.floats();
  for (std::size_t i = 0; i < grouping.count; i++) {
    const Node& node = plan.nodes[i];
    const Shape out = output_shape(node, shape);
    const int64_t images = i >= grouping.first ? grouping.images : 1;
    if (i == grouping.first) s.group = images * shape.floats();
    if (node.kind == kStemNode) {
      s.scratch = std::max(s.scratch, stem_scratch(node.stem.window, node.stem.inputs, out.width));
    } else if (node.kind == kBlockNode) {
      const Block b = block_of(node.block, shape, out, nullptr, nullptr, nullptr);
      const int64_t stride = round_up(b.hidden, 16);
      s.hidden = std::max(s.hidden, images * out.pixels() * stride);
      s.vector = std::max(s.vector, images * stride);
      s.row_sums = std::max(s.row_sums, out.height * stride);
      s.squeeze = std::max(s.squeeze, images * round_up(node.block.squeeze, 16));
      s.scratch = std::max({s.scratch, block_rows_scratch(b), block_channels_scratch(b), pointwise_scratch(b.hidden)});
    } else if (pools(plan, i)) {
      s.scratch = std::max(s.scratch, shape.pixels() * 32);
    }
    if (!pools(plan, i)) s.map = std::max(s.map, images * out.floats());
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

// Nodes [begin, end) over `images` images, whose maps lie one behind the other; the last node writes to `output`.
struct Stretch {
  std::size_t begin, end;
  int64_t images;
  Shape shape;
  const float* map;
  float* output;
};

// Returns the shape of the outputs. `image` is the one that a stem reads.
Shape run_stretch(const Plan& plan, const Batch& batch, int64_t image, const Stretch& s, const Team& team,
                  int64_t* nanoseconds) {
  Shape shape = s.shape;
  const float* map = s.map;
  int turn = 0;
  for (std::size_t i = s.begin; i < s.end; i++) {
    const Node& node = plan.nodes[i];
    const Shape out = output_shape(node, shape);
    const std::size_t last = pools(plan, i) ? i + 1 : i;
    float* to = last + 1 == s.end ? s.output : team.maps[turn];
    const NodeTime time(nanoseconds, i);
    if (node.kind == kStemNode) run_stem(node.stem, batch, image, out, to, team);
    const Weights next = last + 1 < plan.nodes.size()
                             ? first_weights(plan.nodes[last + 1], output_shape(plan.nodes[last + 1], out), team)
                             : Weights{nullptr, 0};
    if (node.kind == kBlockNode) run_block(node.block, s.images, shape, out, map, to, next, team);
    else team.fetch_meanwhile(next);
    if (node.kind == kPoolNode) {
      team.once([&] {
        for (int64_t j = 0; j < s.images; j++)
          mean_of(map + j * shape.floats(), shape.pixels(), shape.channels, shape.channels, to + j * shape.channels);
      });
    }
    if (node.kind == kPointwiseNode) {
      const int64_t pixels = shape.pixels();
      if (last > i) run_pooled(node.linear, s.images, pixels, map, to, team);
      else run_pointwise(node.linear, s.images * pixels, map, node.linear.inputs, nullptr, nullptr, to, team);
    }
    shape = last > i ? output_shape(plan.nodes[last], out) : out;
    i = last;
    map = to;
    turn ^= 1;
  }
  return shape;
}

// Images [begin, end) with one team, up to the first linear layer.
void run_images(const Plan& plan, const Batch& batch, const Grouping& grouping, int64_t begin, int64_t end,
                float* output, int64_t stride, const Team& team, int64_t* nanoseconds) {
  const Shape shape = {batch.height, batch.width, batch.channels};
  const auto run_first = [&](int64_t image, std::size_t nodes, float* to, const char* fetch_end) {
    team.stream_plan(plan.data, fetch_end);
    const float* map = plan.nodes[0].kind == kStemNode ? nullptr : dense_map(batch, image, team.maps[1], team);
    return run_stretch(plan, batch, image, {0, nodes, 1, shape, map, to}, team, nanoseconds);
  };
  for (int64_t i = begin, images; i < end; i += images) {
    float* to = output + i * stride;
    images = team.threads == 1 ? std::min(grouping.images, end - i) : 1;
    if (images == 1) {
      run_first(i, grouping.count, to, plan.end);
      continue;
    }
    Shape middle = shape;
    for (int64_t j = 0; j < images; j++) {
      const int64_t floats = middle.floats();  // known after the first image, which lies at the start
      // The group's weights are wanted after its last image.
      const BlockNode& next = plan.nodes[grouping.first].block;
      const float* own = next.expand_weight ? next.expand_weight : next.depthwise_weight;
      const char* fetch_end = j + 1 < images ? reinterpret_cast<const char*>(own) : plan.end;
      middle = run_first(i + j, grouping.first, team.group + j * floats, fetch_end);
    }
    run_stretch(plan, batch, i, {grouping.first, grouping.count, images, middle, team.group, to}, team, nanoseconds);
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
  const int threads = thread_count();
  const Shape shape = {batch.height, batch.width, batch.channels};
  const Grouping grouping = group(plan, shape, batch.images / threads);
  const std::size_t first_linear = grouping.count;
  int64_t features = 0;
  for (std::size_t i = first_linear; i < plan.nodes.size(); i++) {
    features = std::max({features, plan.nodes[i].linear.inputs, plan.nodes[i].linear.outputs});
  }
  int64_t height = batch.height, width = batch.width;
  output_size(plan, height, width);
  const int64_t stride = features ? plan.nodes[first_linear].linear.inputs : height * width * plan.output_channels;

  const Sizes sizes = measure(plan, shape, grouping);
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
      run_images(plan, batch, grouping, side_by_side * place / members, side_by_side * (place + 1) / members, images,
                 stride, Team(sizes, carver), times);
      crew.barrier();
    }
    Carver carver(memory);
    const Team team(sizes, carver, members, place, &crew);
    run_images(plan, batch, grouping, side_by_side, batch.images, images, stride, team, times);
    if (features) run_classifier(plan, first_linear, batch.images, rows, output, team, times);
  });
}

}  // namespace mnv3_fast
