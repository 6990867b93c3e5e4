// The C function of the library of CUDA kernels for inverted residual blocks: a whole block, or all that comes before
// the gate of one with squeeze-excite. Called from mnv3_fast/ops/inverted_residual/cuda_kernel.py, which computes the
// geometry of the launch. See cuda/api.h.
#pragma once
#include "cuda/api.h"

extern "C" {
// Channel counts are multiples of 8; what is packed has them, and rows of vectors, padded with zeros to multiples
// of 16.
struct mnv3_cuda_inverted_residual_arguments {
  const void* input;          // [images, height, width, inputs]
  const void* expand;         // [hidden, inputs] in fragments (mnv3_fast/gpu/fragments.py)
  const float* vectors;       // [2 + kernel * kernel, hidden]: bias of expand, bias of depthwise, taps
  const void* project;        // [outputs, hidden] in fragments, those of 16 hidden channels side by side; or null
  const float* project_bias;  // [outputs], or null
  const void* residual;       // [images, out_height, out_width, outputs], or null
  const void* fc1;            // [squeeze, hidden], the first layer of the gate, where there is no project; else null
  void* output;               // [images, out_height, out_width, outputs], or hidden in place of outputs
  float* parts;               // [images, grid_x * grid_y, squeeze]: fc1 times the means, in terms to add up; or null
  int32_t height, width, out_height, out_width, inputs, hidden, outputs, squeeze;
  int32_t kernel, stride, pad_left, pad_top;
  int32_t dtype;  // of input, weights, residual and output: 1 float16, 2 bfloat16
  int32_t expand_activation, depthwise_activation, project_activation;  // 0 none, 1 relu, 2 hardswish, 3 relu6
  int32_t tile_h, tile_w, tiles_w;  // pixels of a block's tile of the output map, and tiles along its rows
  int32_t slab;                     // hidden channels of a block: all, if it projects
  int32_t chunk;                    // of them that are in shared memory at a time: all, unless it projects
  int32_t splits;                   // warps that share a tile of the projection, each with hidden channels of its own
  int32_t grid_x, grid_y, grid_z;   // tiles; slabs; images
  int32_t threads, shared;          // threads and bytes of shared memory of a block
};

MNV3_EXPORT int32_t mnv3_cuda_inverted_residual(const mnv3_cuda_inverted_residual_arguments* arguments, void* stream);
}
