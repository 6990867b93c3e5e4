#include "engine/chain.h"

#include <algorithm>
#include <vector>

namespace mnv3_fast {
namespace {

constexpr int64_t kLargeMap = 256 * 1024 / sizeof(float);  // a quarter of an L2

// One layer of a chain on one thread: where its rows go and how many there are.
struct Stage {
  const Node* node;
  Shape in, out;
  Rows<float> output;
  float* scratch;
  Progress progress;
  int64_t done;  // rows before this one have been computed, or nobody needs them
};

bool runs_by_rows(const Node& node) {
  return node.kind == kStemNode || (node.kind == kBlockNode && node.block.squeeze == 0);
}

const Window& window_of(const Node& node) { return node.kind == kStemNode ? node.stem.window : node.block.window; }

std::vector<Stage> stages_of(const Plan& plan, std::size_t first, std::size_t end, Shape in, Carver& carver) {
  std::vector<Stage> stages;
  for (std::size_t i = first; i < end; i++) {
    const Node& node = plan.nodes[i];
    const Shape out = output_shape(node, in);
    Stage stage = {&node, in, out, {nullptr, out.height, out.width * out.channels}, nullptr, {false, 0}, 0};
    if (i + 1 < end) {  // the rows that one row of the next layer reads
      stage.output.count = std::min(out.height, window_of(plan.nodes[i + 1]).rows());
      stage.output.data = carver.take(stage.output.count * stage.output.floats);
    }
    stage.scratch =
        carver.take(node.kind == kStemNode ? stem_scratch(node.stem.window, node.stem.inputs, out.width)
                                           : block_rows_scratch(block_of(node.block, in, out, {}, {}, nullptr)));
    stages.push_back(stage);
    in = out;
  }
  return stages;
}

// Computes the rows of stage i before row `until`, and of the stages before it what these read.
void advance(std::vector<Stage>& stages, std::size_t i, int64_t until, const Batch& batch, int64_t image,
             Rows<const float> map, const Team& team) {
  Stage& stage = stages[i];
  for (; stage.done < until; stage.done++) {
    const int64_t y = stage.done;
    if (i > 0) {
      const Window& w = window_of(*stage.node);
      const int64_t behind = y * w.stride_h - w.pad_top + w.rows();
      advance(stages, i - 1, std::min(behind, stage.in.height), batch, image, map, team);
    }
    if (stage.node->kind == kStemNode) {
      StemStrip strip = stem_of(stage.node->stem, batch, image, stage.out, stage.output, y, y + 1, stage.scratch);
      strip.progress = &stage.progress;
      kernels().stem_strip(strip);
    } else {
      const Rows<float>& before = stages[i > 0 ? i - 1 : 0].output;
      const Rows<const float> input = i > 0 ? Rows<const float>{before.data, before.count, before.floats} : map;
      const Block block = block_of(stage.node->block, stage.in, stage.out, input, stage.output, team.weights());
      kernels().block_rows({block, y, y + 1, stage.scratch, &stage.progress});
    }
  }
}

}  // namespace

std::size_t chain_end(const Plan& plan, std::size_t first, Shape in, int threads) {
  std::size_t end = first;
  Shape shape = in;
  while (end < plan.nodes.size() && runs_by_rows(plan.nodes[end]) && (end == first || shape.floats() >= kLargeMap)) {
    shape = output_shape(plan.nodes[end], shape);
    end++;
  }
  // Each thread computes the rows above its own again, which must stay a small part.
  return end <= first + 1 || (threads > 1 && shape.height < 14 * threads) ? first + 1 : end;
}

int64_t chain_scratch(const Plan& plan, std::size_t first, std::size_t end, Shape in) {
  Carver carver;
  stages_of(plan, first, end, in, carver);
  return carver.used();
}

void run_chain(const Plan& plan, std::size_t first, std::size_t end, Shape in, const Batch& batch, int64_t image,
               const float* map, float* output, const Team& team) {
  Carver sizes;
  const int64_t rows = stages_of(plan, first, end, in, sizes).back().out.height;
  team.split(rows, 1, [&](int64_t row_begin, int64_t row_end, float* scratch) {
    Carver carver(scratch);
    std::vector<Stage> stages = stages_of(plan, first, end, in, carver);
    stages.back().output.data = output;
    int64_t begin = row_begin;
    for (std::size_t i = stages.size(); i-- > 0;) {
      stages[i].done = begin;
      const Window& w = window_of(*stages[i].node);
      begin = std::max<int64_t>(0, begin * w.stride_h - w.pad_top);
    }
    advance(stages, stages.size() - 1, row_end, batch, image, whole_map(map, in), team);
  });
}

}  // namespace mnv3_fast
