#include "conv_arguments.h"

#include <algorithm>

namespace mnv3_fast {

void expect(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& sizes) {
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (std::size_t i = 0; same && i < sizes.size(); i++)
    same = sizes[i] < 0 || tensor.size(static_cast<int64_t>(i)) == sizes[i];
  if (!tensor.is_float32()) fail(op, std::string(name) + " must be float32");
  if (same) return;
  std::string wanted;
  for (const int64_t size : sizes)
    wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? std::string("*") : std::to_string(size));
  fail(op, std::string(name) + " must be [" + wanted + "], got " + tensor.shape());
}

void copy_dense(const Tensor& t, float* output) {
  int64_t sizes[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < t.dim(); i++) {
    sizes[4 - t.dim() + i] = t.size(i);
    strides[4 - t.dim() + i] = t.stride(i);
  }
  const float* data = t.data();
  for (int64_t a = 0; a < sizes[0]; a++) {
    for (int64_t b = 0; b < sizes[1]; b++) {
      for (int64_t c = 0; c < sizes[2]; c++) {
        const float* in = data + a * strides[0] + b * strides[1] + c * strides[2];
        for (int64_t d = 0; d < sizes[3]; d++) *output++ = in[d * strides[3]];
      }
    }
  }
}

void pack_pointwise(const float* weight, int64_t outputs, int64_t inputs, float* packed, float* padded_bias) {
  kernels().fold_batch_norm(
      {weight, nullptr, nullptr, nullptr, nullptr, nullptr, 0, outputs, inputs, packed, padded_bias, kPointwisePanels});
}

ConvArguments::ConvArguments(const char* op, Arguments& args, std::size_t first)
    : weight_(args.tensor(first)),
      bias_(args.tensor(first + 1)),
      bn_weight_(args.tensor(first + 2)),
      bn_bias_(args.tensor(first + 3)),
      mean_(args.tensor(first + 4)),
      variance_(args.tensor(first + 5)),
      eps_(args.real(first + 6)) {
  if (!weight_.is_float32() || weight_.dim() < 2 || weight_.dim() > 4)
    fail(op, "weight must be float32 of 2 to 4 dimensions");
  const std::vector<int64_t> vector = {outputs()};
  if (bias_) expect(op, "bias", bias_, vector);
  if (bn_weight_) expect(op, "bn_weight", bn_weight_, vector);
  if (bn_bias_) expect(op, "bn_bias", bn_bias_, vector);
  if (mean_) expect(op, "bn_mean", mean_, vector);
  if (variance_) expect(op, "bn_var", variance_, vector);
  if (static_cast<bool>(mean_) != static_cast<bool>(variance_)) fail(op, "bn_mean and bn_var must be given together");
}

PackedConv ConvArguments::fold(Carver& carver, Packing packing) const {
  const Tensor* vectors[] = {&bias_, &bn_weight_, &bn_bias_, &mean_, &variance_};
  const float* dense[5] = {};
  const int64_t padded = packing == kDense ? outputs() : round_up(outputs(), 16);
  float* folded_weight = carver.take(padded * inputs());
  float* folded_bias = carver.take(padded);
  float* copy = weight_.is_dense() ? nullptr : carver.take(weight_.numel());
  for (int i = 0; i < 5; i++) {
    if (!*vectors[i]) continue;
    float* vector = vectors[i]->is_dense() ? nullptr : carver.take(outputs());
    if (vector) copy_dense(*vectors[i], vector);
    dense[i] = vector ? vector : vectors[i]->data();
  }
  if (!folded_weight) return {nullptr, nullptr};
  if (copy) copy_dense(weight_, copy);
  kernels().fold_batch_norm({copy ? copy : weight_.data(), dense[0], dense[1], dense[2], dense[3], dense[4], eps_,
                             outputs(), inputs(), folded_weight, folded_bias, packing});
  std::fill(folded_bias + outputs(), folded_bias + padded, 0.0f);
  return {folded_weight, folded_bias};
}

Window window_arguments(const char* op, const Arguments& args, std::size_t first, const Tensor& input,
                        const Tensor& weight) {
  const Window w = {weight.size(2),          weight.size(3),          args.integer(first),     args.integer(first + 1),
                    args.integer(first + 2), args.integer(first + 3), args.integer(first + 4), args.integer(first + 5),
                    args.integer(first + 6), args.integer(first + 7)};
  constexpr int64_t kMost = 1 << 20;
  const int64_t least_one[] = {w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w};
  const int64_t pads[] = {w.pad_left, w.pad_right, w.pad_top, w.pad_bottom};
  const bool same = std::count(pads, pads + 4, kSame) == 4;
  for (const int64_t v : least_one)
    if (v < 1 || v > kMost) fail(op, "kernel size, stride and dilation must be at least 1");
  for (const int64_t v : pads)
    if ((v < 0 && !same) || v > kMost) fail(op, "padding must not be negative");
  if (w.kernel_h > kMostKernelRows) fail(op, "the kernel is too high");
  return w.for_input(input.size(2), input.size(3));
}

int activation_argument(const char* op, int64_t value) {
  if (value < kNone || value > kHardswish)
    fail(op, "activation must be 0 (none), 1 (relu) or 2 (hardswish), got " + std::to_string(value));
  return static_cast<int>(value);
}

}  // namespace mnv3_fast
