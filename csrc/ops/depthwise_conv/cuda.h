// The C function of the library of CUDA kernels for depthwise convolution, called from
// mnv3_fast/ops/depthwise_conv/cuda_kernel.py, which computes the geometry of the launch. See cuda/api.h.
#pragma once
#include "cuda/api.h"

extern "C" {
struct mnv3_cuda_depthwise_conv_arguments {
  const void* input;   // [images, height, width, channels]
  const void* weight;  // [kernel * kernel, channels]
  const float* bias;   // [channels]
  void* output;        // [images, out_height, out_width, channels]
  float* sums;         // [images, grid_x, channels] of the outputs before they are rounded, or null
  int32_t height, width, out_height, out_width, channels;
  int32_t kernel, stride, pad_left, pad_top;
  int32_t dtype;                   // of input, weight and output: 0 float32, 1 float16, 2 bfloat16
  int32_t activation;              // 0 none, 1 relu, 2 hardswish, 3 relu6
  int32_t tiles_h, tiles_w;        // of a map; a thread computes one
  int32_t across, down;            // threads of a block along the channels, in words of 128 bits, and along the tiles
  int32_t grid_x, grid_y, grid_z;  // blocks along the tiles and along the channels; images
  int32_t shared;                  // bytes of shared memory a block
};

MNV3_EXPORT int32_t mnv3_cuda_depthwise_conv(const mnv3_cuda_depthwise_conv_arguments* arguments, void* stream);
}
