// torch.ops.mnv3_fast.squeeze_excite: input, fc1_weight, fc1_bias?, fc2_weight, fc2_bias?, activation, gate, slope
// -> input * gate(mean(input))
#include "ops/squeeze_excite_gate/gate.h"
#include "parallel.h"

#include <algorithm>

namespace mnv3_fast {
namespace {

constexpr const char* kOp = "squeeze_excite";

// f(image) over threads.
template <class F>
void each_image(int64_t images, const F& f) {
  const int64_t chunks = std::min<int64_t>(images, thread_count());
  parallel_for(chunks, [&](int64_t c) {
    for (int64_t n = images * c / chunks; n < images * (c + 1) / chunks; n++) f(n);
  });
}

void run(const Tensor& input, const GateArguments& arguments, Tensor& output) {
  const int64_t images = input.size(0), channels = input.size(1), height = input.size(2), width = input.size(3);
  with_memory([&](Carver& carver) {
    float* means = carver.take(images * channels);
    float* gate = carver.take(images * channels);
    const auto row = [&](int64_t n, int64_t y) { return input.data() + n * input.stride(0) + y * input.stride(2); };
    if (means)
      each_image(images, [&](int64_t n) {
        const Source image = {row(n, 0), input.stride(2), input.stride(3), input.stride(1)};
        kernels().channel_means({image, height, width, channels, height * width, means + n * channels});
      });
    arguments.run(images, means, gate, carver);
    if (means)
      each_image(images, [&](int64_t n) {
        for (int64_t y = 0; y < height; y++) {
          kernels().scale_pixels({row(n, y), width, input.stride(3), input.stride(1), channels, gate + n * channels,
                                  output.data() + (n * height + y) * width * channels});
        }
      });
  });
}

void squeeze_excite(StableIValue* stack, uint64_t, uint64_t) {
  Arguments args(stack, "TTtTtiif");
  const Tensor& input = args.tensor(0);
  expect(kOp, "input", input, {-1, -1, -1, -1});
  if (input.size(2) < 1 || input.size(3) < 1) fail(kOp, "input must not be empty, got " + input.shape());
  const GateArguments gate(kOp, args, 1, input.size(1));
  Tensor output = empty_map(input.size(0), input.size(1), input.size(2), input.size(3));
  if (input.size(0) > 0) run(input, gate, output);
  set_result(stack, 0, std::move(output));
}

const RegisterCpu registration(kOp, squeeze_excite);

}  // namespace
}  // namespace mnv3_fast
