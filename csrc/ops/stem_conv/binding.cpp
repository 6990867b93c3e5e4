// torch.ops.mnv3_fast.stem_conv: input, conv and BatchNorm (7), scale?, shift?, window (8), activation -> output
#include "conv_arguments.h"
#include "parallel.h"

#include <algorithm>

namespace mnv3_fast {
namespace {

constexpr const char* kOp = "stem_conv";

// Channels of an image that are converted together; the kernel's table of row pointers bounds them.
void run(const Tensor& input, const ConvArguments& conv, const Tensor& scale, const Tensor& shift, const Window& window,
         int activation, Tensor& output) {
  const int64_t images = input.size(0), rows = output.size(2), width = output.size(3), channels = input.size(1);
  const int64_t chunks_an_image = images < thread_count() ? std::min<int64_t>(rows, thread_count()) : 1;
  const int64_t scratch_floats = round_up(stem_scratch(window, channels, width), 16);
  const int64_t chunks = std::min<int64_t>(images * chunks_an_image, std::max<int64_t>(thread_count(), 1));
  with_memory([&](Carver& carver) {
    const PackedConv packed = conv.fold(carver, kPanels);
    float* scales = scale ? carver.take(channels) : nullptr;
    float* shifts = shift ? carver.take(channels) : nullptr;
    float* scratch = carver.take(scratch_floats * chunks);
    if (!scratch) return;
    if (scale) copy_dense(scale, scales);
    if (shift) copy_dense(shift, shifts);
    const int64_t units = images * chunks_an_image;
    parallel_for(chunks, [&](int64_t c) {
      for (int64_t u = units * c / chunks; u < units * (c + 1) / chunks; u++) {
        const int64_t n = u / chunks_an_image, part = u % chunks_an_image, offset = n * input.stride(0);
        const void* data =
            input.is_uint8() ? static_cast<const void*>(input.data<uint8_t>() + offset) : input.data() + offset;
        kernels().stem_strip({data,
                              input.is_uint8(),
                              input.stride(2),
                              input.stride(3),
                              input.stride(1),
                              input.size(2),
                              input.size(3),
                              channels,
                              conv.outputs(),
                              scales,
                              shifts,
                              window,
                              packed.weight,
                              packed.bias,
                              activation,
                              output.data() + n * output.stride(0),
                              width,
                              rows * part / chunks_an_image,
                              rows * (part + 1) / chunks_an_image,
                              scratch + c * scratch_floats});
      }
    });
  });
}

void stem_conv(StableIValue* stack, uint64_t, uint64_t) {
  Arguments args(stack, "TTtttttfttiiiiiiiii");
  const Tensor &input = args.tensor(0), &scale = args.tensor(8), &shift = args.tensor(9);
  const ConvArguments conv(kOp, args, 1);
  if (input.dim() != 4 || (!input.is_float32() && !input.is_uint8()))
    fail(kOp, "input must be [N, C, H, W], float32 or uint8");
  expect(kOp, "weight", conv.weight(), {-1, input.size(1), -1, -1});
  if (scale) expect(kOp, "scale", scale, {input.size(1)});
  if (shift) expect(kOp, "shift", shift, {input.size(1)});
  const Window window = window_arguments(kOp, args, 10, input, conv.weight());
  if (input.size(1) < 1 || input.size(1) * window.kernel_h > kMostStemRows) {
    fail(kOp, "input channels times kernel height must be at most " + std::to_string(kMostStemRows));
  }
  const int activation = activation_argument(kOp, args.integer(18));
  const int64_t height = window.output_h(input.size(2)), width = window.output_w(input.size(3));
  if (height < 1 || width < 1 || conv.outputs() < 1) fail(kOp, "the output would be empty");
  Tensor output = empty_map(input.size(0), conv.outputs(), height, width);
  if (input.size(0) > 0) run(input, conv, scale, shift, window, activation, output);
  set_result(stack, 0, std::move(output));
}

const RegisterCpu registration(kOp, stem_conv);

}  // namespace
}  // namespace mnv3_fast
