// torch.ops.mnv3_fast.run_plan(Tensor input, Tensor plan, int[] geometry) -> Tensor. The geometry is for the fake
// kernel.
#include <chrono>
#include <vector>

#include "api.h"
#include "arena.h"
#include "engine/executor.h"
#include "tensor.h"

namespace mnv3_fast {
namespace {

// Within these no size of memory overflows.
constexpr int64_t kMostSide = 1 << 20, kMostImages = int64_t{1} << 31;

thread_local double last_seconds = 0;
thread_local int64_t runs = 0;
thread_local bool timing = false;
thread_local std::vector<int64_t> layer_times;

void run_plan(StableIValue* stack, uint64_t, uint64_t) {
  Arguments args(stack, "TTI");
  const Tensor &input = args.tensor(0), &blob = args.tensor(1);
  if (!blob.is_uint8() || blob.dim() != 1 || !blob.is_dense()) fail("run_plan", "plan must be a dense uint8 vector");
  const Plan plan = read_plan(blob.data<uint8_t>(), blob.numel());
  const bool image = plan.nodes[0].kind == kStemNode;
  if (input.dim() != 4 || input.size(1) != plan.input_channels) {
    fail("run_plan", "input must be [N, " + std::to_string(plan.input_channels) + ", H, W], got " + input.shape());
  }
  if (!input.is_float32() && !(image && input.is_uint8())) {
    fail("run_plan", image ? "input must be float32 or uint8" : "input must be float32");
  }
  int64_t height = input.size(2), width = input.size(3);
  if (height <= 0 || width <= 0) fail("run_plan", "input must not be empty, got " + input.shape());
  if (height > kMostSide || width > kMostSide || input.size(0) > kMostImages) {
    fail("run_plan", "input is too large, got " + input.shape());
  }
  output_size(plan, height, width);
  Tensor output = plan.output_is_map ? empty_map(input.size(0), plan.output_channels, height, width)
                                     : empty_matrix(input.size(0), plan.output_channels);
  layer_times.assign(timing ? plan.nodes.size() : 0, 0);
  const auto start = std::chrono::steady_clock::now();
  execute(plan,
          {input.data<void>(), input.is_uint8(), input.size(0), input.size(1), input.size(2), input.size(3),
           input.stride(0), input.stride(1), input.stride(2), input.stride(3)},
          output.data(), timing ? layer_times.data() : nullptr);
  runs++;
  last_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  set_result(stack, 0, std::move(output));
}

const RegisterCpu registration("run_plan", run_plan);

}  // namespace
}  // namespace mnv3_fast

int64_t mnv3_fast_arena_bytes() { return mnv3_fast::Arena::size(); }

void mnv3_fast_time_layers(bool on) { mnv3_fast::timing = on; }

int64_t mnv3_fast_layer_times(const int64_t** nanoseconds) {
  *nanoseconds = mnv3_fast::layer_times.data();
  return static_cast<int64_t>(mnv3_fast::layer_times.size());
}

int64_t mnv3_fast_last_run(double* seconds) {
  *seconds = mnv3_fast::last_seconds;
  return mnv3_fast::runs;
}
