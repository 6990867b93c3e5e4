#include "engine/plan.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace mnv3_fast {
namespace {

constexpr int64_t kMagic = 0x4e414c5033564e4d;  // "MNV3PLAN"
constexpr int64_t kVersion = 2;
constexpr int64_t kHeaderWords = 16, kNodeWords = 48;
constexpr int64_t kMostNodes = 4096, kMostChannels = 1 << 20, kMostTaps = 64;

[[noreturn]] void corrupt(const std::string& what) {
  throw std::runtime_error("run_plan: the plan is not valid: " + what);
}

// Reads the words of one node; each getter checks the range.
class Words {
 public:
  Words(const uint8_t* data, int64_t bytes, int64_t offset) : data_(data), bytes_(bytes), offset_(offset) {}

  int64_t word(int64_t i) const {
    int64_t value;
    std::memcpy(&value, data_ + offset_ + 8 * i, 8);
    return value;
  }
  int64_t between(int64_t i, int64_t least, int64_t most, const char* what) const {
    const int64_t value = word(i);
    if (value < least || value > most) corrupt(std::string(what) + " is " + std::to_string(value));
    return value;
  }
  int64_t channels(int64_t i, const char* what) const { return between(i, 1, kMostChannels, what); }
  int activation(int64_t i) const { return static_cast<int>(between(i, kNone, kHardswish, "an activation")); }
  bool flag(int64_t i) const { return between(i, 0, 1, "a flag") != 0; }
  float real(int64_t i) const {
    double value;
    std::memcpy(&value, data_ + offset_ + 8 * i, 8);
    return static_cast<float>(value);
  }
  const float* floats(int64_t i, int64_t count, const char* what) const {
    const int64_t at = word(i);
    if (at < 0 || at % 4 != 0 || at > bytes_ || count > (bytes_ - at) / 4)
      corrupt(std::string(what) + " lies outside of it");
    return reinterpret_cast<const float*>(data_ + at);
  }
  const float* panels(int64_t i, int64_t inputs, int64_t outputs, const char* what) const {
    return floats(i, round_up(outputs, 16) * inputs, what);
  }
  const float* pointwise(int64_t i, int64_t inputs, int64_t outputs, const char* what) const {
    return floats(i, pointwise_floats(inputs, outputs), what);
  }
  Window window(int64_t i) const {
    Window w;
    w.kernel_h = between(i, 1, kMostTaps, "a kernel height");
    w.kernel_w = between(i + 1, 1, kMostTaps, "a kernel width");
    w.stride_h = between(i + 2, 1, kMostTaps, "a stride");
    w.stride_w = between(i + 3, 1, kMostTaps, "a stride");
    int64_t* pads[] = {&w.pad_left, &w.pad_right, &w.pad_top, &w.pad_bottom};
    bool same = true;
    for (int64_t p = 0; p < 4; p++) same &= word(i + 4 + p) == kSame;
    for (int64_t p = 0; p < 4; p++) *pads[p] = same ? kSame : between(i + 4 + p, 0, 4096, "a padding");
    w.dilation_h = between(i + 8, 1, 4096, "a dilation");
    w.dilation_w = between(i + 9, 1, 4096, "a dilation");
    return w;
  }

 private:
  const uint8_t* data_;
  int64_t bytes_, offset_;
};

StemNode read_stem(const Words& n) {
  StemNode s = {};
  s.inputs = n.between(1, 1, kMostStemRows, "the number of image channels");
  s.outputs = n.channels(2, "the number of stem channels");
  s.window = n.window(3);
  if (s.inputs * s.window.kernel_h > kMostStemRows) corrupt("the stem reads too many rows");
  s.activation = n.activation(13);
  s.weight = n.panels(14, s.inputs * s.window.kernel_h * s.window.kernel_w, s.outputs, "the stem's weight");
  s.bias = n.panels(15, 1, s.outputs, "the stem's bias");
  if (n.flag(16)) {
    s.scale = n.floats(17, s.inputs, "the stem's scale");
    s.shift = n.floats(18, s.inputs, "the stem's shift");
  }
  return s;
}

BlockNode read_block(const Words& n) {
  BlockNode b = {};
  b.inputs = n.channels(1, "the number of input channels");
  b.hidden = n.channels(2, "the number of hidden channels");
  b.outputs = n.channels(3, "the number of output channels");
  b.window = n.window(4);
  if (n.flag(14)) {
    b.expand_weight = n.pointwise(22, b.inputs, b.hidden, "an expand weight");
    b.expand_bias = n.panels(23, 1, b.hidden, "an expand bias");
  } else if (b.inputs != b.hidden) {
    corrupt("a block without expansion changes the number of channels");
  }
  b.expand_activation = n.activation(15);
  b.depthwise_activation = n.activation(16);
  b.depthwise_weight = n.panels(24, b.window.kernel_h * b.window.kernel_w, b.hidden, "a depthwise weight");
  b.depthwise_bias = n.panels(25, 1, b.hidden, "a depthwise bias");
  b.squeeze = n.between(17, 0, kMostChannels, "the number of squeeze channels");
  if (b.squeeze) {
    b.squeeze_activation = n.activation(18);
    b.gate = n.between(19, 0, 1, "a gate") ? kSigmoid : kHardsigmoid;
    b.slope = n.real(20);
    b.fc1_weight = n.pointwise(26, b.hidden, b.squeeze, "a squeeze weight");
    b.fc1_bias = n.panels(27, 1, b.squeeze, "a squeeze bias");
    b.fc2_weight = n.pointwise(28, b.squeeze, b.hidden, "an excite weight");
    b.fc2_bias = n.panels(29, 1, b.hidden, "an excite bias");
  }
  b.project_weight = n.pointwise(30, b.hidden, b.outputs, "a project weight");
  b.project_bias = n.panels(31, 1, b.outputs, "a project bias");
  b.project_activation = n.activation(32);
  b.residual = n.flag(21);
  const Window& w = b.window;
  const bool keeps_size = w.stride_h == 1 && w.stride_w == 1 &&
                          (w.pad_left == kSame || (w.pad_top + w.pad_bottom == w.dilation_h * (w.kernel_h - 1) &&
                                                   w.pad_left + w.pad_right == w.dilation_w * (w.kernel_w - 1)));
  if (b.residual && (b.inputs != b.outputs || !keeps_size)) {
    corrupt("a residual block changes the shape of its map");
  }
  return b;
}

LinearNode read_linear(const Words& n) {
  LinearNode l = {};
  l.inputs = n.channels(1, "the number of inputs");
  l.outputs = n.channels(2, "the number of outputs");
  l.activation = n.activation(3);
  l.weight = n.pointwise(4, l.inputs, l.outputs, "a weight");
  l.bias = n.panels(5, 1, l.outputs, "a bias");
  return l;
}

// Channels must fit from node to node; a map becomes features at a pool, and only features enter a linear layer.
void check_chain(const Plan& plan) {
  int64_t channels = plan.input_channels;
  bool is_map = true;
  for (std::size_t i = 0; i < plan.nodes.size(); i++) {
    const Node& node = plan.nodes[i];
    const bool wants_map = node.kind != kLinearNode;
    if (wants_map != is_map) corrupt("node " + std::to_string(i) + " does not fit the one before it");
    if (node.kind == kStemNode && i != 0) corrupt("a stem stands inside");
    const int64_t inputs = node.kind == kStemNode    ? node.stem.inputs
                           : node.kind == kBlockNode ? node.block.inputs
                           : node.kind == kPoolNode  ? channels
                                                     : node.linear.inputs;
    if (inputs != channels) corrupt("node " + std::to_string(i) + " wants another number of channels");
    if (node.kind == kStemNode) channels = node.stem.outputs;
    if (node.kind == kBlockNode) channels = node.block.outputs;
    if (node.kind == kPointwiseNode || node.kind == kLinearNode) channels = node.linear.outputs;
    if (node.kind == kPoolNode) is_map = false;
  }
  if (channels != plan.output_channels || is_map != plan.output_is_map)
    corrupt("its output is not what its header says");
}

}  // namespace

Plan read_plan(const uint8_t* data, int64_t bytes) {
  if (bytes < kHeaderWords * 8) corrupt("it has " + std::to_string(bytes) + " bytes");
  const Words header(data, bytes, 0);
  if (header.word(0) != kMagic) corrupt("it does not start with MNV3PLAN");
  if (header.word(1) != kVersion)
    corrupt("it has version " + std::to_string(header.word(1)) + ", this build reads version " +
            std::to_string(kVersion));
  if (header.word(2) != bytes) corrupt("it has another size than its header says");
  const int64_t count = header.between(3, 1, kMostNodes, "the number of nodes");
  if (kHeaderWords * 8 + count * kNodeWords * 8 > bytes) corrupt("its table of nodes is cut off");
  Plan plan;
  plan.data = reinterpret_cast<const char*>(data);
  plan.end = plan.data + bytes;
  plan.input_channels = header.channels(4, "the number of input channels");
  plan.output_channels = header.channels(5, "the number of output channels");
  plan.output_is_map = header.flag(6);
  plan.nodes.resize(static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; i++) {
    const Words words(data, bytes, (kHeaderWords + i * kNodeWords) * 8);
    Node& node = plan.nodes[static_cast<std::size_t>(i)];
    node.kind = static_cast<NodeKind>(words.between(0, kStemNode, kLinearNode, "a node's kind"));
    if (node.kind == kStemNode) node.stem = read_stem(words);
    if (node.kind == kBlockNode) node.block = read_block(words);
    if (node.kind == kPointwiseNode || node.kind == kLinearNode) node.linear = read_linear(words);
  }
  check_chain(plan);
  return plan;
}

}  // namespace mnv3_fast
