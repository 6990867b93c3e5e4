// torch.ops.mnv3_fast.pointwise_conv: input, conv and BatchNorm (7), gate?, residual?, activation -> output
#include "conv_arguments.h"
#include "parallel.h"

#include <algorithm>

namespace mnv3_fast {
namespace {

constexpr const char* kOp = "pointwise_conv";

bool is_dense_map(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return (c == 1 || t.stride(1) == 1) && (w == 1 || t.stride(3) == c) && (h == 1 || t.stride(2) == w * c) &&
         (t.size(0) == 1 || t.stride(0) == h * w * c);
}

// A map with any strides as dense NHWC, in `copy` if it is not that already.
const float* dense_map(const Tensor& t, float* copy) {
  if (!copy) return t.data();
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3), rows = t.size(0) * h;
  const int64_t chunks = std::min<int64_t>(rows, thread_count());
  parallel_for(chunks, [&](int64_t i) {
    for (int64_t row = rows * i / chunks; row < rows * (i + 1) / chunks; row++) {
      const float* data = t.data() + row / h * t.stride(0) + row % h * t.stride(2);
      kernels().scale_pixels({data, w, t.stride(3), t.stride(1), c, nullptr, copy + row * w * c});
    }
  });
  return copy;
}

struct Inputs {
  const float *map, *gate, *residual;
};

// Pixels of all images over threads where there are enough of them, else output channels.
void run(const Inputs& in, int64_t images, int64_t pixels, const ConvArguments& conv, const PackedConv& packed,
         int activation, float* scratch, int64_t scratch_floats, float* output) {
  const int64_t inputs = conv.inputs(), outputs = conv.outputs(), panels = round_up(outputs, 16) / 16;
  const int64_t threads = thread_count(),
                tiles = (pixels + 55) / 56;  // an image's part never depends on the threads' number
  const bool by_pixels = images * tiles >= threads;
  const int64_t units = by_pixels ? images * tiles : (panels + 1) / 2, chunks = std::min(units, threads);
  parallel_for(chunks, [&](int64_t c) {
    for (int64_t u = units * c / chunks; u < units * (c + 1) / chunks; u++) {
      for (int64_t n = by_pixels ? u / tiles : 0; n < (by_pixels ? u / tiles + 1 : images); n++) {
        const int64_t first = by_pixels ? u % tiles * 56 : 0,
                      count = by_pixels ? std::min<int64_t>(56, pixels - first) : pixels;
        const int64_t at = n * pixels + first;
        kernels().pointwise({count, inputs, outputs, in.map + at * inputs, inputs, packed.weight, packed.bias,
                             output + at * outputs, outputs, in.residual ? in.residual + at * outputs : nullptr,
                             outputs, in.gate ? in.gate + n * inputs : nullptr,
                             scratch ? scratch + c * scratch_floats : nullptr, activation, 0, by_pixels ? 0 : 2 * u,
                             by_pixels ? panels : std::min(2 * u + 2, panels), nullptr});
      }
    }
  });
}

void pointwise_conv(StableIValue* stack, uint64_t, uint64_t) {
  Arguments args(stack, "TTtttttftti");
  const Tensor &input = args.tensor(0), &gate = args.tensor(8), &residual = args.tensor(9);
  const ConvArguments conv(kOp, args, 1);
  expect(kOp, "input", input, {-1, -1, -1, -1});
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3), outputs = conv.outputs();
  if (conv.weight().dim() == 2) expect(kOp, "weight", conv.weight(), {-1, c});
  else expect(kOp, "weight", conv.weight(), {-1, c, 1, 1});
  if (gate) expect(kOp, "gate", gate, {n, c});
  if (residual) expect(kOp, "residual", residual, {n, outputs, h, w});
  if (c < 1 || h < 1 || w < 1 || outputs < 1) fail(kOp, "input and output must not be empty");
  const int activation = activation_argument(kOp, args.integer(10));
  Tensor output = empty_map(n, outputs, h, w);
  if (n > 0)
    with_memory([&](Carver& carver) {
      const PackedConv packed = conv.fold(carver, kPointwisePanels);
      float* gates = gate ? carver.take(n * c) : nullptr;
      float* input_copy = is_dense_map(input) ? nullptr : carver.take(input.numel());
      float* residual_copy = residual && !is_dense_map(residual) ? carver.take(residual.numel()) : nullptr;
      const int64_t scratch_floats = gate ? round_up(std::min<int64_t>(pointwise_strip(c), 56) * c, 16) : 0;
      float* scratch = gate ? carver.take(std::max(scratch_floats, pointwise_scratch(c)) * thread_count()) : nullptr;
      if (!packed.weight) return;
      if (gate) copy_dense(gate, gates);
      const Inputs in = {dense_map(input, input_copy), gates, residual ? dense_map(residual, residual_copy) : nullptr};
      run(in, n, h * w, conv, packed, activation, scratch, pointwise_scratch(c), output.data());
    });
  set_result(stack, 0, std::move(output));
}

const RegisterCpu registration(kOp, pointwise_conv);

}  // namespace
}  // namespace mnv3_fast
