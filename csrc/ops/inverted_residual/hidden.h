// The first part of the kernel of cuda.cu: the hidden pixels of a tile, expanded and convolved in shared memory.
#pragma once
#include <type_traits>

#include "cuda/copy.h"
#include "cuda/matrix.h"
#include "ops/inverted_residual/tile.h"

namespace mnv3_fast {
namespace cuda {

struct Place {
  int source;  // pixel of the input
  int hidden;  // bytes from the first hidden pixel; -1 for no pixel
};

template <class Element>
__device__ __forceinline__ float2 unpack(uint32_t bits) {
  return Convert<Element>::pair({{bits}}, 0);
}

template <class Element>
__device__ __forceinline__ uint32_t pack(float x, float y) {
  Word word;
  Convert<Element>::put(word, 0, make_float2(x, y));
  return word.bits[0];
}

// f(constant) for the activation that is asked for.
template <class F>
__device__ __forceinline__ void with_activation(int asked, F f) {
  if (asked == kRelu) f(std::integral_constant<Activation, kRelu>());
  else if (asked == kHardswish) f(std::integral_constant<Activation, kHardswish>());
  else if (asked == kRelu6) f(std::integral_constant<Activation, kRelu6>());
  else f(std::integral_constant<Activation, kNone>());
}

template <class Element, int kSize, int kStride, bool kProject>
struct Hidden {
  const InvertedResidual& a;
  const BlockShared& at;
  char* const shared;
  const int thread, lane, warp;
  const int out_row, out_col;            // first pixel of the tile
  const int top, left;                   // input pixel of the first hidden pixel; it may lie outside of the map
  const int row_begin, col_begin, in_w;  // those of the input that lie inside
  const int pixels;                      // of the input that lie inside
  const int slab_begin, slab_end;        // hidden channels

  __device__ __forceinline__ Hidden(const InvertedResidual& arguments, const BlockShared& parts)
      : a(arguments),
        at(parts),
        shared(reinterpret_cast<char*>(dynamic_shared())),
        thread(threadIdx.x),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        out_row(blockIdx.x / a.tiles_w * a.tile_h),
        out_col(blockIdx.x % a.tiles_w * a.tile_w),
        top(out_row * kStride - a.pad_top),
        left(out_col * kStride - a.pad_left),
        row_begin(max(top, 0)),
        col_begin(max(left, 0)),
        in_w(max(min(left + at.patch_w, a.width) - col_begin, 0)),
        pixels(max(min(top + at.patch_h, a.height) - row_begin, 0) * in_w),
        slab_begin(blockIdx.y * a.slab),
        slab_end(min(slab_begin + a.slab, tiles_of(a.hidden) * 16)) {}

  __device__ __forceinline__ void copy(int to, const void* from, int words) const {
    for (int i = thread; i < words; i += kBlockThreads)
      copy_later(shared + to + i * 16, static_cast<const char*>(from) + i * 16, true);
  }

  // The weights of the hidden channels from `first` on.
  __device__ __forceinline__ void copy_expand(int first) const {
    const int size = at.steps * 32;  // words of 16 channels
    if (first < slab_end)
      copy(at.expand, static_cast<const Word*>(a.expand) + first / 16 * size, count(first) / 16 * size);
    end_group_of_copies();
  }
  __device__ __forceinline__ void copy_project(int first) const {
    const int size = at.columns * 32;
    if (first < slab_end)
      copy(at.project, static_cast<const Word*>(a.project) + first / 16 * size, count(first) / 16 * size);
    end_group_of_copies();
  }

  // Hidden channels of the chunk that starts at `first`.
  __device__ __forceinline__ int count(int first) const { return min(a.chunk, slab_end - first); }

  // Biases and taps, where each pixel of the input goes, zeros around the map, the input.
  __device__ __forceinline__ void fill() const {
    const int across = (slab_end - slab_begin) / 4, all = tiles_of(a.hidden) * 16;
    for (int i = warp; i < 2 + kSize * kSize; i += kBlockWarps)
      for (int w = lane; w < across; w += 32)
        copy_later(shared + at.vectors + (i * a.slab + w * 4) * 4, a.vectors + i * all + slab_begin + w * 4, true);
    auto* places = reinterpret_cast<Place*>(shared + at.places);
    for (int i = thread; i < tiles_of(pixels) * 16; i += kBlockThreads) {
      const int y = row_begin + i / max(in_w, 1), x = col_begin + i % max(in_w, 1);
      places[i] = {y * a.width + x, i < pixels ? ((y - top) * at.patch_w + x - left) * at.hidden_row : -1};
    }
    for (int i = thread; i < at.patch_h * at.patch_w * at.hidden_row / 16; i += kBlockThreads)
      reinterpret_cast<Word*>(shared + at.hidden)[i] = {};
    __syncthreads();
    const int words = at.steps * 2;  // of a pixel; of 24 channels and the like there is a last one of zeros
    const auto* image = static_cast<const char*>(a.input) + int64_t{blockIdx.z} * a.height * a.width * a.inputs * 2;
    const int rows_a_turn = kBlockThreads / words, words_a_turn = kBlockThreads % words;
    for (int row = thread / words, word = thread % words; row < pixels;) {
      const bool inside = word * 8 < a.inputs;
      copy_later(shared + at.input + row * at.input_row + word * 16,
                 image + int64_t{places[row].source} * a.inputs * 2 + (inside ? word * 16 : 0), inside);
      row += rows_a_turn, word += words_a_turn;
      if (word >= words) word -= words, row++;
    }
  }

  // A warp computes 16 or 32 pixels of 16 hidden channels at a time: two tiles, where that leaves no warp without any.
  __device__ __forceinline__ void expand(int first) const {
    const int m_tiles = tiles_of(pixels), n_tiles = count(first) / 16;
    const int each = (m_tiles + 1) / 2 * n_tiles >= kBlockWarps ? 2 : 1, m_units = (m_tiles + each - 1) / each;
    for (int unit = warp; unit < m_units * n_tiles; unit += kBlockWarps) {
      const int n = unit / m_units, m = (unit - n * m_units) * each;
      if (each == 2 && m + 1 < m_tiles) expand_tiles<2>(first, m, n);
      else expand_tiles<1>(first, m, n);
    }
  }

  template <int kTiles>
  __device__ __forceinline__ void expand_tiles(int first, int m, int n) const {
    const char* rows = shared + at.input + (m * 16 + lane % 16) * at.input_row + lane / 16 * 16;
    const auto* weights = reinterpret_cast<const Word*>(shared + at.expand) + n * at.steps * 32 + lane;
    float sums[kTiles][2][4] = {};
    Word b[2];
    uint32_t x[2][kTiles][4];
    const int last = at.steps - 1;
    const auto load = [&](int to, int k) {
      b[to] = weights[k * 32];
#pragma unroll
      for (int i = 0; i < kTiles; i++) load_rows(rows + i * 16 * at.input_row + k * 32, x[to][i]);
    };
    const auto add = [&](int from) {
#pragma unroll
      for (int i = 0; i < kTiles; i++) {
        multiply<Element>(x[from][i], b[from].bits[0], b[from].bits[1], sums[i][0]);
        multiply<Element>(x[from][i], b[from].bits[2], b[from].bits[3], sums[i][1]);
      }
    };
    load(0, 0);
    for (int k = 0; k <= last; k += 2) {  // each load while the one before is multiplied
      load(1, min(k + 1, last));
      add(0);
      if (k == last) break;
      load(0, min(k + 2, last));
      add(1);
    }
    const int channel = n * 16 + lane % 4 * 2;  // of the chunk
    const auto* bias = reinterpret_cast<const float2*>(shared + at.vectors + (first - slab_begin + channel) * 4);
    const float2 biases[2] = {bias[0], bias[4]};
    const auto* places = reinterpret_cast<const Place*>(shared + at.places) + m * 16 + lane / 4;
    with_activation(a.expand_activation, [&](auto activation) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; i++) {
        const int place = places[i * 8].hidden;
        if (place < 0) continue;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float* sum = sums[i / 2][j] + i % 2 * 2;
          const float2 y = activate<activation.value>(make_float2(sum[0] + biases[j].x, sum[1] + biases[j].y), 0);
          *reinterpret_cast<uint32_t*>(shared + at.hidden + place + (channel + j * 8) * 2) = pack<Element>(y.x, y.y);
        }
      }
    });
  }

  // A thread convolves kStrip pixels of two channels at a time.
  __device__ __forceinline__ void depthwise(int first) const {
    const int pairs = count(first) / 2, strips_w = a.tile_w / kStrip;
    for (int task = thread; task < a.tile_h * strips_w * pairs; task += kBlockThreads) {
      const int strip = task / pairs, channel = (task - strip * pairs) * 2;
      const int row = strip / strips_w, column = (strip - row * strips_w) * kStrip;
      float2 sums[kStrip];
      convolve(row, column, first - slab_begin + channel, channel, sums);
      with_activation(a.depthwise_activation, [&](auto activation) {
#pragma unroll
        for (int p = 0; p < kStrip; p++) sums[p] = activate<activation.value>(sums[p], 0);
      });
      if constexpr (kProject) {
        char* const to = shared + at.mapped + (row * a.tile_w + column) * at.hidden_row + channel * 2;
        const bool there = first + channel < a.hidden;  // or weights of 0 have made NaN of infinite inputs
#pragma unroll
        for (int p = 0; p < kStrip; p++)
          *reinterpret_cast<uint32_t*>(to + p * at.hidden_row) = there ? pack<Element>(sums[p].x, sums[p].y) : 0;
      } else {
        store_strip(strip, row, column, channel, sums);
      }
    }
  }

  __device__ __forceinline__ void convolve(int row, int column, int of_slab, int channel,
                                           float2 (&sums)[kStrip]) const {
    constexpr int kColumns = (kStrip - 1) * kStride + kSize;
    const char* from = shared + at.hidden + (row * at.patch_w + column) * kStride * at.hidden_row + channel * 2;
    const char* vector = shared + at.vectors + (a.slab + of_slab) * 4;  // after the biases of expand
    const float2 bias = *reinterpret_cast<const float2*>(vector);
#pragma unroll
    for (int p = 0; p < kStrip; p++) sums[p] = bias;
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      float2 taps[kSize];
#pragma unroll
      for (int j = 0; j < kSize; j++) taps[j] = *reinterpret_cast<const float2*>(vector += a.slab * 4);
#pragma unroll
      for (int q = 0; q < kColumns; q++) {
        const float2 x = unpack<Element>(*reinterpret_cast<const uint32_t*>(from + q * at.hidden_row));
#pragma unroll
        for (int p = 0; p < kStrip; p++) {
          const int j = q - p * kStride;
          if (j >= 0 && j < kSize) sums[p] = multiply_add(x, taps[j], sums[p]);
        }
      }
      from += at.patch_w * at.hidden_row;
    }
  }

  // To the output, and the sums over the pixels of the strip that are there.
  __device__ __forceinline__ void store_strip(int strip, int row, int column, int channel,
                                              const float2 (&sums)[kStrip]) const {
    const int y = out_row + row, x = out_col + column, of_all = slab_begin + channel;
    float2 total = {};
    const int64_t pixel = (int64_t{blockIdx.z} * a.out_height + y) * a.out_width + x;
    char* const to = static_cast<char*>(a.output) + (pixel * a.hidden + of_all) * 2;
#pragma unroll
    for (int p = 0; p < kStrip; p++) {
      if (y >= a.out_height || x + p >= a.out_width || of_all >= a.hidden) continue;
      total = make_float2(total.x + sums[p].x, total.y + sums[p].y);
      *reinterpret_cast<uint32_t*>(to + int64_t{p} * a.hidden * 2) = pack<Element>(sums[p].x, sums[p].y);
    }
    reinterpret_cast<float2*>(shared + at.sums)[(strip * a.slab + channel) / 2] = total;
  }

  // What the slab adds to the gate's first layer. Sums over strips and channels are in their order.
  __device__ __forceinline__ void squeeze() const {
    const int strips = a.tile_h * (a.tile_w / kStrip), channels = min(slab_end, a.hidden) - slab_begin;
    const auto* sums = reinterpret_cast<const float*>(shared + at.sums);
    auto* means = reinterpret_cast<float*>(shared + at.sums) + strips * a.slab;
    __syncthreads();
    for (int c = thread; c < channels; c += kBlockThreads) {
      float sum = 0;
      for (int strip = 0; strip < strips; strip++) sum += sums[strip * a.slab + c];
      means[c] = sum / static_cast<float>(a.out_height * a.out_width);
    }
    __syncthreads();
    const int64_t part = (int64_t{blockIdx.z} * gridDim.x + blockIdx.x) * gridDim.y + blockIdx.y;
    for (int s = thread; s < a.squeeze; s += kBlockThreads) {
      const auto* row = static_cast<const char*>(a.fc1) + (int64_t{s} * a.hidden + slab_begin) * 2;
      float sum = 0;
#pragma unroll 2
      for (int c = 0; c < channels; c += 8) {
        const Word word = load(row + c * 2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float2 weight = Convert<Element>::pair(word, i);
          sum = fmaf(weight.x, means[c + 2 * i], sum);
          sum = fmaf(weight.y, means[c + 2 * i + 1], sum);
        }
      }
      a.parts[part * a.squeeze + s] = sum;
    }
  }
};

}  // namespace cuda
}  // namespace mnv3_fast
