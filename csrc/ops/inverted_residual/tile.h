// What a block of the kernel of cuda.cu computes and keeps in shared memory, and what it may be asked for without
// touching other memory.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "ops/inverted_residual/cuda.h"

namespace mnv3_fast {
namespace cuda {

using InvertedResidual = mnv3_cuda_inverted_residual_arguments;

// In cuda.cu, for the type of each dtype; arguments are known (is_known).
template <class Element>
int32_t inverted_residual(const InvertedResidual& arguments, void* stream);

constexpr int kBlockThreads = 256;
constexpr int kBlockWarps = kBlockThreads / 32;
constexpr int kStrip = 7;    // pixels of a row that a thread convolves: maps of MobileNetV3 are 7 x 2^n wide
constexpr int kColumns = 5;  // times 16 outputs that a warp keeps in registers
constexpr int kMostBlockShared = 99 << 10;  // bytes of a block, on sm_86, 89 and 120
constexpr int kRowPad = 8;                  // numbers between rows, so that they lie an odd number of 16 bytes apart

__host__ __device__ inline int tiles_of(int count) { return (count + 15) / 16; }

// Shared memory of a block: where its parts start, in bytes, all multiples of 16.
struct BlockShared {
  int patch_h, patch_w;       // hidden pixels that a tile reads, inside of the map or not
  int steps;                  // of 16 inputs
  int input_row, hidden_row;  // bytes from a pixel to the next
  int rows, columns;          // of the projection's tiles of 16 x 16: of the pixels and of the outputs
  int sum_row;                // floats from a pixel to the next where the splits are added up
  int vectors, places, input, expand, hidden, project, mapped, sums, size;

  __host__ __device__ explicit BlockShared(const InvertedResidual& of) {
    patch_h = (of.tile_h - 1) * of.stride + of.kernel, patch_w = (of.tile_w - 1) * of.stride + of.kernel;
    const int inside = (patch_h < of.height ? patch_h : of.height) * (patch_w < of.width ? patch_w : of.width);
    steps = tiles_of(of.inputs);
    input_row = (steps * 16 + kRowPad) * 2, hidden_row = (of.chunk + kRowPad) * 2;
    rows = tiles_of(of.tile_h * of.tile_w), columns = tiles_of(of.outputs);
    sum_row = columns * 16 + kRowPad;
    vectors = 0;
    places = vectors + (2 + of.kernel * of.kernel) * of.slab * 4;
    input = places + tiles_of(inside) * 16 * 8;
    expand = input + tiles_of(inside) * 16 * input_row;
    hidden = expand + of.chunk * steps * 32;
    project = hidden + patch_h * patch_w * hidden_row;
    mapped = project + (of.project ? of.chunk * columns * 32 : 0);
    const int end = mapped + (of.project ? rows * 16 * hidden_row : 0);
    sums = of.project ? input : end;  // of the splits, when all else is done; or of strips of pixels, then of channels
    const int sums_end =
        sums + 4 * (of.project ? of.splits * rows * 16 * sum_row : (of.tile_h * of.tile_w / kStrip + 1) * of.slab);
    size = end > sums_end ? end : sums_end;
  }
};

inline bool is_aligned(const InvertedResidual& of) {
  uintptr_t address = 0;
  for (const void* each :
       {of.input, of.expand, static_cast<const void*>(of.vectors), of.project,
        static_cast<const void*>(of.project_bias), of.residual, of.fc1, static_cast<const void*>(of.output)})
    address |= reinterpret_cast<uintptr_t>(each);
  return address % 16 == 0;
}

inline bool is_known(const InvertedResidual& of) {
  constexpr int kMost = 1 << 15, kMostBlocks = 65535;
  const auto between = [](int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; };
  const auto channels = [&](int value) { return between(value, 8, kMost) && value % 8 == 0; };
  const auto blocks = [](int64_t count, int64_t each) { return (count - 1) / each + 1; };
  const bool words = (of.kernel == 3 || of.kernel == 5) && between(of.stride, 1, 2) && between(of.dtype, 1, 2) &&
                     between(of.expand_activation, 0, 3) && between(of.depthwise_activation, 0, 3) &&
                     between(of.project_activation, 0, 3) && of.threads == kBlockThreads;
  const bool sizes = between(of.height, 1, kMost) && between(of.width, 1, kMost) && between(of.out_height, 1, kMost) &&
                     between(of.out_width, 1, kMost) && between(of.pad_left, 0, kMost) &&
                     between(of.pad_top, 0, kMost) && channels(of.inputs) && channels(of.hidden);
  const bool tile = between(of.tile_h, 1, kMost) && between(of.tile_w, kStrip, kMost) && of.tile_w % kStrip == 0 &&
                    between(of.chunk, 16, kMost) && of.chunk % 16 == 0 && between(of.slab, 16, kMost) &&
                    of.slab % 16 == 0 && int64_t{of.tile_h} * of.tile_w <= kMost;
  if (!words || !sizes || !tile || !is_aligned(of)) return false;
  const bool grid = of.tiles_w == blocks(of.out_width, of.tile_w) &&
                    of.grid_x == blocks(of.out_height, of.tile_h) * of.tiles_w &&
                    of.grid_y == blocks(of.hidden, of.slab) && between(of.grid_y, 1, kMostBlocks) &&
                    between(of.grid_z, 1, kMostBlocks);
  // The largest parts first, so that what is larger than shared memory ever is does not overflow.
  const int64_t patch_h = int64_t{of.tile_h - 1} * of.stride + of.kernel;
  const int64_t patch_w = int64_t{of.tile_w - 1} * of.stride + of.kernel;
  const bool fits =
      patch_h * patch_w * of.chunk < kMostBlockShared &&
      std::min<int64_t>(patch_h, of.height) * std::min<int64_t>(patch_w, of.width) * of.inputs < kMostBlockShared &&
      int64_t{of.slab} * of.kernel * of.kernel < kMostBlockShared && int64_t{of.chunk} * of.inputs < kMostBlockShared;
  if (!grid || !fits) return false;
  if (of.project) {
    const bool splits = of.splits == 1 || of.splits == 2 || of.splits == 4 || of.splits == 8;
    if (!channels(of.outputs) || !splits || !of.project_bias || of.grid_y != 1 || of.slab > tiles_of(of.hidden) * 16 ||
        tiles_of(of.tile_h * of.tile_w) * of.splits > kBlockWarps || of.outputs > kColumns * 16)
      return false;
  } else if (of.chunk != of.slab || of.splits != 1 || !of.fc1 || !of.parts || !channels(of.squeeze) ||
             of.outputs != 0) {
    return false;
  }
  return of.shared == BlockShared(of).size && of.shared <= kMostBlockShared;
}

}  // namespace cuda
}  // namespace mnv3_fast
