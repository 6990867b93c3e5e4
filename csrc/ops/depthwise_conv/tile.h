// Which tile a thread of the CUDA kernel computes, and how threads make up blocks and blocks a grid.
#pragma once
#include <algorithm>
#include <cstdint>

#include "ops/depthwise_conv/cuda.h"

namespace mnv3_fast {
namespace cuda {

constexpr int kThreads = 128;
// What ptxas is told: in 16 bit it spills registers to fit one more block of 128, in 32 bit where it is told 256.
template <class Element>
constexpr int kMostThreads = sizeof(Element) == 2 ? 256 : kThreads;
constexpr int kGroups = 32;  // at most so many threads of a block side by side along the channels
constexpr int kMostBlocks = 65535;

using Arguments = mnv3_cuda_depthwise_conv_arguments;

// In cuda.cu, for the type of each dtype; arguments are known (is_known).
template <class Element>
int32_t depthwise_conv(const Arguments& arguments, void* stream);
template <class Element>
int32_t channel_means(const float* sums, void* means, int64_t images, int64_t parts, int64_t channels, int64_t pixels,
                      void* stream);

// Pixels of a thread. Maps of MobileNetV3 are 7 x 2^n wide, so that 7 leaves no thread with less to do; two rows, where
// what is kept of both fits into 255 registers. Channel by channel there are more addresses to keep.
template <int kSize, int kStride, bool kAligned>
struct Tile {
  static constexpr int kHeight = kAligned && kSize == 3 && kStride == 1 ? 2 : 1;
  static constexpr int kWidth = kAligned ? 7 : 4;
};

struct Geometry {
  int tile_h, tile_w;         // pixels of a thread
  int tiles_h, tiles_w;       // tiles of a map
  int across, down;           // threads of a block along the channels, and along the tiles
  int channel_blocks, parts;  // blocks along the channels, and along the tiles

  int tiles() const { return tiles_h * tiles_w; }
};

inline bool is_known(const Arguments& of) {
  constexpr int64_t kMost = 1 << 30;
  const bool kernel = (of.kernel == 3 || of.kernel == 5) && (of.stride == 1 || of.stride == 2);
  const bool words = of.dtype >= 0 && of.dtype <= 2 && of.activation >= 0 && of.activation <= 2;
  const bool maps = of.images >= 0 && of.height >= 1 && of.width >= 1 && of.out_height >= 1 && of.out_width >= 1;
  const bool sizes = std::max({of.height, of.width, of.out_height, of.out_width, of.pad_left, of.pad_top}) < kMost &&
                     int64_t{of.out_height} * of.out_width < kMost;
  return kernel && words && maps && sizes && of.pad_left >= 0 && of.pad_top >= 0 && of.channels >= 1 &&
         of.channels <= kMostBlocks * int64_t{kGroups};
}

// 128 bits at a time, or else channel by channel.
inline bool is_aligned(const Arguments& of) {
  const auto address = reinterpret_cast<uintptr_t>(of.input) | reinterpret_cast<uintptr_t>(of.output) |
                       reinterpret_cast<uintptr_t>(of.weight) | reinterpret_cast<uintptr_t>(of.bias);
  return address % 16 == 0 && of.channels % (of.dtype == 0 ? 4 : 8) == 0;
}

inline Geometry geometry(const Arguments& of, int tile_h, int tile_w) {
  Geometry g = {tile_h, tile_w, (of.out_height - 1) / tile_h + 1, (of.out_width - 1) / tile_w + 1, 0, 0, 0, 0};
  const int vector = of.dtype == 0 ? 4 : 8, groups = (of.channels - 1) / vector + 1;
  g.channel_blocks = (groups - 1) / kGroups + 1;
  g.across = (groups - 1) / g.channel_blocks + 1;
  const int most = kThreads / g.across;
  g.parts = (g.tiles() - 1) / most + 1;
  g.down = (g.tiles() - 1) / g.parts + 1;
  return g;
}

}  // namespace cuda
}  // namespace mnv3_fast
