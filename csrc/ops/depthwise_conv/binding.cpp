// torch.ops.mnv3_fast.depthwise_conv and depthwise_conv_mean: input, conv and BatchNorm (7), window (8), activation
// -> output (, means [N, C])
#include "conv_arguments.h"
#include "parallel.h"

#include <algorithm>

namespace mnv3_fast {
namespace {

constexpr const char* kOp = "depthwise_conv";
constexpr int64_t kStripRows = 14;  // at least this many rows a unit: a strip gathers kernel_h - 1 rows again

struct Task {
  const Tensor& input;
  const ConvArguments& conv;
  Window window;
  int activation;
  Tensor &output, &means;
};

// Units are blocks of 16 channels of an image, and strips of rows where those are fewer than threads.
void run(const Task& t) {
  const int64_t images = t.input.size(0), channels = t.input.size(1), rows = t.output.size(2), width = t.output.size(3);
  const int64_t blocks = (channels + 15) / 16, threads = thread_count();
  const int64_t strips = images * blocks >= threads ? 1 : std::max<int64_t>(1, std::min(threads, rows / kStripRows));
  const int64_t units = images * blocks * strips, chunks = std::min(units, threads);
  const int64_t scratch_floats = round_up(depthwise_scratch(t.window, width), 16), padded = blocks * 16;
  with_memory([&](Carver& carver) {
    const PackedConv packed = t.conv.fold(carver, kPanels);
    float* sums = t.means ? carver.take(images * rows * padded) : nullptr;
    float* scratch = carver.take(scratch_floats * chunks);
    if (!scratch) return;
    parallel_for(chunks, [&](int64_t c) {
      for (int64_t u = units * c / chunks; u < units * (c + 1) / chunks; u++) {
        const int64_t n = u / (blocks * strips), block = u / strips % blocks, strip = u % strips;
        kernels().depthwise_strip(
            {{t.input.data() + n * t.input.stride(0), t.input.stride(2), t.input.stride(3), t.input.stride(1)},
             t.input.size(2),
             t.input.size(3),
             channels,
             t.window,
             packed.weight,
             packed.bias,
             t.activation,
             t.output.data() + n * t.output.stride(0),
             width,
             rows * strip / strips,
             rows * (strip + 1) / strips,
             block,
             block + 1,
             sums ? sums + n * rows * padded : nullptr,
             scratch + c * scratch_floats});
      }
    });
    // Row sums in the order of the rows: the same for any number of threads.
    if (sums)
      for (int64_t n = 0; n < images; n++) {
        const Source row_sums = {sums + n * rows * padded, 0, padded, 1};
        kernels().channel_means({row_sums, 1, rows, channels, rows * width, t.means.data() + n * channels});
      }
  });
}

void depthwise(StableIValue* stack, bool with_means) {
  Arguments args(stack, "TTtttttfiiiiiiiii");
  const Tensor& input = args.tensor(0);
  const ConvArguments conv(kOp, args, 1);
  expect(kOp, "input", input, {-1, -1, -1, -1});
  expect(kOp, "weight", conv.weight(), {input.size(1), 1, -1, -1});
  const Window window = window_arguments(kOp, args, 8, input, conv.weight());
  const int activation = activation_argument(kOp, args.integer(16));
  const int64_t height = window.output_h(input.size(2)), width = window.output_w(input.size(3));
  if (height < 1 || width < 1 || input.size(1) < 1) fail(kOp, "the output would be empty");
  Tensor output = empty_map(input.size(0), input.size(1), height, width), means;
  if (with_means) means = empty_matrix(input.size(0), input.size(1));
  if (input.size(0) > 0) run({input, conv, window, activation, output, means});
  set_result(stack, 0, std::move(output));
  if (with_means) set_result(stack, 1, std::move(means));
}

void depthwise_conv(StableIValue* stack, uint64_t, uint64_t) { depthwise(stack, false); }
void depthwise_conv_mean(StableIValue* stack, uint64_t, uint64_t) { depthwise(stack, true); }

const RegisterCpu registration(kOp, depthwise_conv), mean_registration("depthwise_conv_mean", depthwise_conv_mean);

}  // namespace
}  // namespace mnv3_fast
