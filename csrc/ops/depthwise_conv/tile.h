// Which tile a thread of the CUDA kernel computes, and what it may be asked for without touching other memory.
#pragma once
#include <algorithm>
#include <cstdint>

#include "ops/depthwise_conv/cuda.h"

namespace mnv3_fast {
namespace cuda {

constexpr int kThreads = 128;
constexpr int kMostThreads = 256;  // what ptxas is told: else it spills a few registers to fit one more block of 128
constexpr int kMostAcross = 32;    // of them along the channels
constexpr int kMostBlocks = 65535;

using Arguments = mnv3_cuda_depthwise_conv_arguments;

// In cuda.cu, for the type of each dtype; arguments are known (is_known).
template <class Element>
int32_t depthwise_conv(const Arguments& arguments, void* stream);

// Pixels of a thread, as in mnv3_fast/ops/depthwise_conv/cuda_kernel.py. Maps of MobileNetV3 are 7 x 2^n wide, so that
// 7 leaves no thread with less to do; two rows where they share taps.
template <int kSize, int kStride>
struct Tile {
  static constexpr int kHeight = kStride == 1 ? 2 : 1;
  static constexpr int kWidth = 7;
};

// Channels of a word of 128 bits.
inline int vector_of(const Arguments& of) { return of.dtype == 0 ? 4 : 8; }

inline bool is_known(const Arguments& of) {
  constexpr int64_t kMost = 1 << 30;
  const bool kernel = (of.kernel == 3 || of.kernel == 5) && (of.stride == 1 || of.stride == 2);
  const bool words = of.dtype >= 0 && of.dtype <= 2 && of.activation >= 0 && of.activation <= 3;
  const bool maps = of.height >= 1 && of.width >= 1 && of.out_height >= 1 && of.out_width >= 1 && of.channels >= 1;
  const bool sizes =
      std::max({of.height, of.width, of.out_height, of.out_width, of.pad_left, of.pad_top, of.channels}) < kMost &&
      int64_t{of.out_height} * of.out_width < kMost;
  const bool threads =
      of.across >= 1 && of.across <= kMostAcross && of.down >= 1 && int64_t{of.across} * of.down <= kThreads;
  const bool blocks = of.grid_z >= 1 && std::max(of.grid_y, of.grid_z) <= kMostBlocks;
  return kernel && words && maps && sizes && of.pad_left >= 0 && of.pad_top >= 0 && threads && blocks;
}

// Whether the launch's tiles are those of the kernel, its blocks neither too few for them nor one too many (each writes
// a part of the sums), and its shared memory that of the taps, which is enough for the sums.
inline bool covers(const Arguments& of, int tile_h, int tile_w) {
  const auto blocks = [](int64_t count, int64_t each) { return (count - 1) / each + 1; };
  const int64_t tiles = int64_t{of.tiles_h} * of.tiles_w, words = blocks(of.channels, vector_of(of));
  const int64_t shared = int64_t{of.kernel} * of.kernel * kMostAcross * vector_of(of) * int64_t{sizeof(float)};
  return of.tiles_h == blocks(of.out_height, tile_h) && of.tiles_w == blocks(of.out_width, tile_w) &&
         of.grid_x == blocks(tiles, of.down) && of.grid_y == blocks(words, of.across) && of.shared == shared;
}

// 128 bits at a time, or else channel by channel.
inline bool is_aligned(const Arguments& of) {
  const auto address = reinterpret_cast<uintptr_t>(of.input) | reinterpret_cast<uintptr_t>(of.output) |
                       reinterpret_cast<uintptr_t>(of.weight) | reinterpret_cast<uintptr_t>(of.bias);
  return address % 16 == 0 && of.channels % vector_of(of) == 0;
}

}  // namespace cuda
}  // namespace mnv3_fast
