// torch.ops.mnv3_fast.squeeze_excite_gate: mean [N, C], fc1_weight, fc1_bias?, fc2_weight, fc2_bias?, activation, gate,
// slope -> gate [N, C]
#include "ops/squeeze_excite_gate/gate.h"

#include <algorithm>

namespace mnv3_fast {
namespace {

constexpr const char* kOp = "squeeze_excite_gate";

PackedConv pack_layer(const Tensor& weight, const Tensor& bias, Carver& carver) {
  const int64_t outputs = weight.size(0), inputs = weight.numel() / outputs, padded = round_up(outputs, 16);
  float* dense = weight.is_dense() ? nullptr : carver.take(weight.numel());
  float* packed = carver.take(padded * inputs);
  float* packed_bias = carver.take(padded);
  if (!packed) return {nullptr, nullptr};
  if (dense) copy_dense(weight, dense);
  pack_pointwise(dense ? dense : weight.data(), outputs, inputs, packed, packed_bias);
  std::fill(packed_bias, packed_bias + padded, 0.0f);
  if (bias) copy_dense(bias, packed_bias);
  return {packed, packed_bias};
}

void run_layer(const PackedConv& layer, int64_t images, int64_t inputs, int64_t outputs, const float* input,
               float* output, int activation, float slope) {
  kernels().squeeze_excite_layer({images, inputs, outputs, input, inputs, layer.weight, layer.bias, output, outputs,
                                  nullptr, 0, nullptr, nullptr, activation, slope, 0, round_up(outputs, 16) / 16,
                                  nullptr});
}

void expect_layer(const char* op, const char* name, const Tensor& weight, int64_t inputs) {
  if (weight.dim() == 2) expect(op, name, weight, {-1, inputs});
  else expect(op, name, weight, {-1, inputs, 1, 1});
}

}  // namespace

GateArguments::GateArguments(const char* op, Arguments& args, std::size_t first, int64_t channels)
    : fc1_weight_(args.tensor(first)),
      fc1_bias_(args.tensor(first + 1)),
      fc2_weight_(args.tensor(first + 2)),
      fc2_bias_(args.tensor(first + 3)),
      channels_(channels) {
  expect_layer(op, "fc1_weight", fc1_weight_, channels);
  squeeze_ = fc1_weight_.size(0);
  expect_layer(op, "fc2_weight", fc2_weight_, squeeze_);
  if (fc2_weight_.size(0) != channels) fail(op, "fc2_weight must have as many outputs as there are channels");
  if (channels < 1 || squeeze_ < 1) fail(op, "there must be at least one channel and one squeezed channel");
  if (fc1_bias_) expect(op, "fc1_bias", fc1_bias_, {squeeze_});
  if (fc2_bias_) expect(op, "fc2_bias", fc2_bias_, {channels});
  activation_ = activation_argument(op, args.integer(first + 4));
  const int64_t gate = args.integer(first + 5);
  if (gate != 0 && gate != 1) fail(op, "gate must be 0 (hardsigmoid) or 1 (sigmoid), got " + std::to_string(gate));
  gate_ = gate == 0 ? kHardsigmoid : kSigmoid;
  slope_ = static_cast<float>(args.real(first + 6));
}

void GateArguments::run(int64_t images, const float* means, float* gate, Carver& carver) const {
  const PackedConv fc1 = pack_layer(fc1_weight_, fc1_bias_, carver), fc2 = pack_layer(fc2_weight_, fc2_bias_, carver);
  float* squeezed = carver.take(images * squeeze_);
  if (!squeezed) return;
  run_layer(fc1, images, channels_, squeeze_, means, squeezed, activation_, 0);
  run_layer(fc2, images, squeeze_, channels_, squeezed, gate, gate_, slope_);
}

namespace {

void squeeze_excite_gate(StableIValue* stack, uint64_t, uint64_t) {
  Arguments args(stack, "TTtTtiif");
  const Tensor& mean = args.tensor(0);
  expect(kOp, "mean", mean, {-1, -1});
  const GateArguments gate(kOp, args, 1, mean.size(1));
  Tensor output = empty_matrix(mean.size(0), mean.size(1));
  if (mean.size(0) > 0)
    with_memory([&](Carver& carver) {
      float* means = carver.take(mean.numel());
      if (means) copy_dense(mean, means);
      gate.run(mean.size(0), means, output.data(), carver);
    });
  set_result(stack, 0, std::move(output));
}

const RegisterCpu registration(kOp, squeeze_excite_gate);

}  // namespace
}  // namespace mnv3_fast
