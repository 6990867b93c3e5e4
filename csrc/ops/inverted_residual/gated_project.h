// The C function of the library of CUDA kernels for the second launch of a block with squeeze-excite: what is left of
// the gate, and the projection of what it multiplies. Called from mnv3_fast/ops/inverted_residual/
// cuda_gated_project.py, which computes the geometry of the launch. See cuda/api.h.
#pragma once
#include "cuda/api.h"

extern "C" {
struct mnv3_cuda_gated_project_arguments {
  const void* hidden;      // [images, pixels, channels]
  const float* parts;      // [images, count, squeeze]: the first layer of the gate, in terms of which there are count
  const float* fc1_bias;   // [squeeze]
  const void* fc2_weight;  // [channels, squeeze] in fragments, as a left factor (cuda_gated_project.py)
  const float* fc2_bias;   // [channels]
  const void* weight;      // [outputs, channels] in fragments, outputs reordered (cuda_gated_project.py)
  const float* bias;       // [outputs]
  const void* residual;    // [images, pixels, outputs], or null
  void* output;            // [images, pixels, outputs]
  float* partials;         // [images, grid_x, grid_y, rows of a tile * columns of a tile]; null where grid_y is 1
  uint32_t* arrivals;      // [images, grid_x] zeros, which the kernel leaves behind; null where grid_y is 1
  float slope;
  int32_t pixels, channels, squeeze, outputs, count;
  int32_t dtype;  // of hidden, weights, residual and output: 1 float16, 2 bfloat16
  int32_t squeeze_activation,
      activation;                   // of the gate's first layer and of the output: 0 none, 1 relu, 2 hardswish, 3 relu6
  int32_t gate;                     // 0 hardsigmoid with this slope, 1 sigmoid
  int32_t row_warps, column_warps;  // of a block along pixels and outputs: each has 16 pixels and
  int32_t groups;                   // so many times 16 outputs
  int32_t slab_warps;               // that share the channels of the same pixels and outputs
  int32_t slab;                     // channels of a block
  int32_t grid_x, grid_y, grid_z;   // tiles of pixels times tiles of outputs, the latter side by side; slabs; images
  int32_t threads, shared;          // threads and bytes of shared memory of a block
};

MNV3_EXPORT int32_t mnv3_cuda_gated_project(const mnv3_cuda_gated_project_arguments* arguments, void* stream);
}
