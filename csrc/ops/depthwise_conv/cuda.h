// The C functions of the library of CUDA kernels (mnv3_fast/_cuda.so) for depthwise convolution, called from
// mnv3_fast/ops/depthwise_conv/cuda_kernel.py. They know pointers, sizes and a stream, never torch.
#pragma once
#include <cstdint>

#define MNV3_EXPORT __attribute__((visibility("default")))

extern "C" {
struct mnv3_cuda_depthwise_conv_arguments {
  const void* input;   // [images, height, width, channels]
  const void* weight;  // [kernel * kernel, channels]
  const float* bias;   // [channels]
  void* output;        // [images, out_height, out_width, channels]
  float* sums;         // [images, parts, channels] of the outputs before they are rounded, or null
  int64_t images;
  int32_t height, width, out_height, out_width, channels;
  int32_t kernel, stride, pad_left, pad_top;
  int32_t dtype;       // of input, weight and output: 0 float32, 1 float16, 2 bfloat16
  int32_t activation;  // 0 none, 1 relu, 2 hardswish
};

// The number of parts that the sums of an image come in, for arguments with all other pointers; -1 if there is no
// kernel for these arguments.
MNV3_EXPORT int64_t mnv3_cuda_depthwise_conv_parts(const mnv3_cuda_depthwise_conv_arguments* arguments);

// Starts the kernel on a stream. 0: it was started; -1: there is none for these arguments; else an error of CUDA's.
MNV3_EXPORT int32_t mnv3_cuda_depthwise_conv(const mnv3_cuda_depthwise_conv_arguments* arguments, void* stream);

// means [images, channels] of a dtype: sums over the parts, in their order, by the pixels of a map. Returns as above.
MNV3_EXPORT int32_t mnv3_cuda_channel_means(const float* sums, void* means, int64_t images, int64_t parts,
                                            int64_t channels, int64_t pixels, int32_t dtype, void* stream);

MNV3_EXPORT const char* mnv3_cuda_error(int32_t code);
}
