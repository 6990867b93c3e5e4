// A plan: a network or one block, packed into one uint8 tensor. int64 header, table of nodes of kNodeWords int64 each,
// then float32 data in the packed layouts of kernels.h. mnv3_fast/engine/plan.py writes it and documents each word.
// A plan may come from a file, so every size and offset is checked before it is used.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace mnv3_fast {

enum NodeKind : int64_t { kStemNode = 1, kBlockNode = 2, kPointwiseNode = 3, kPoolNode = 4, kLinearNode = 5 };

struct StemNode {
  int64_t inputs, outputs;
  Window window;
  int activation;
  const float *weight, *bias, *scale, *shift;
};
struct BlockNode {
  int64_t inputs, hidden, outputs, squeeze;
  Window window;
  int expand_activation, depthwise_activation, squeeze_activation, gate, project_activation;
  float slope;
  bool residual;
  const float *expand_weight, *expand_bias, *depthwise_weight, *depthwise_bias;
  const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias, *project_weight, *project_bias;
};
struct LinearNode {  // also a 1x1 conv over a map
  int64_t inputs, outputs;
  int activation;
  const float *weight, *bias;
};
struct Node {
  NodeKind kind;
  StemNode stem;
  BlockNode block;
  LinearNode linear;
};

struct Plan {
  std::vector<Node> nodes;
  int64_t input_channels, output_channels;
  bool output_is_map;
  const char *data, *end;  // of the tensor: the weights lie in it in the order of execution
};

// Throws std::runtime_error("run_plan: ...") for anything that is not a valid plan.
Plan read_plan(const uint8_t* data, int64_t bytes);

}  // namespace mnv3_fast
