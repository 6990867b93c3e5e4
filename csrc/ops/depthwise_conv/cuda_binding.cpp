// The C functions of the library of CUDA kernels for depthwise convolution: what there is a kernel for, and which.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "ops/depthwise_conv/tile.h"

using namespace mnv3_fast::cuda;

namespace {

constexpr int32_t kUnknown = -1;

template <int kSize, int kStride>
int64_t parts_of(const Arguments& of) {
  using Aligned = Tile<kSize, kStride, true>;
  using Other = Tile<kSize, kStride, false>;
  const Geometry g =
      is_aligned(of) ? geometry(of, Aligned::kHeight, Aligned::kWidth) : geometry(of, Other::kHeight, Other::kWidth);
  return g.parts;
}

}  // namespace

int64_t mnv3_cuda_depthwise_conv_parts(const Arguments* arguments) {
  const Arguments& of = *arguments;
  if (!is_known(of)) return kUnknown;
  if (of.kernel == 3) return of.stride == 1 ? parts_of<3, 1>(of) : parts_of<3, 2>(of);
  return of.stride == 1 ? parts_of<5, 1>(of) : parts_of<5, 2>(of);
}

int32_t mnv3_cuda_depthwise_conv(const Arguments* arguments, void* stream) {
  const Arguments& of = *arguments;
  if (!is_known(of)) return kUnknown;
  if (of.dtype == 0) return depthwise_conv<float>(of, stream);
  return of.dtype == 1 ? depthwise_conv<__half>(of, stream) : depthwise_conv<__nv_bfloat16>(of, stream);
}

int32_t mnv3_cuda_channel_means(const float* sums, void* means, int64_t images, int64_t parts, int64_t channels,
                                int64_t pixels, int32_t dtype, void* stream) {
  constexpr int64_t kMost = int64_t{kThreads} * 0x7fffffff;
  if (dtype < 0 || dtype > 2 || images < 0 || parts < 1 || channels < 1 || pixels < 1) return kUnknown;
  if (images > kMost / channels) return kUnknown;
  if (images == 0) return 0;
  if (dtype == 0) return channel_means<float>(sums, means, images, parts, channels, pixels, stream);
  if (dtype == 1) return channel_means<__half>(sums, means, images, parts, channels, pixels, stream);
  return channel_means<__nv_bfloat16>(sums, means, images, parts, channels, pixels, stream);
}

const char* mnv3_cuda_error(int32_t code) {
  return code == kUnknown ? "there is no kernel for these arguments"
                          : cudaGetErrorString(static_cast<cudaError_t>(code));
}
