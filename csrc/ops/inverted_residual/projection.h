// The last part of the kernel of cuda.cu: outputs of a tile of pixels, 16 x 16 of them in the registers of a warp.
#pragma once
#include "ops/inverted_residual/hidden.h"

namespace mnv3_fast {
namespace cuda {

template <class Element>
struct Projection {
  const InvertedResidual& a;
  const BlockShared& at;
  char* const shared;
  const int lane;
  const int row, split;  // a warp has all outputs of 16 pixels, and adds up its own share of the hidden channels
  float sums[kColumns][2][4] = {};

  __device__ __forceinline__ Projection(const InvertedResidual& arguments, const BlockShared& parts, char* memory)
      : a(arguments),
        at(parts),
        shared(memory),
        lane(threadIdx.x % 32),
        row(threadIdx.x / 32 / a.splits),
        split(threadIdx.x / 32 % a.splits) {}

  // With `steps` times 16 hidden channels in shared memory.
  __device__ __forceinline__ void add(int steps) {
    if (row >= at.rows) return;
    const char* from = shared + at.mapped + (row * 16 + lane % 16) * at.hidden_row + lane / 16 * 16;
    for (int k = split; k < steps; k += a.splits) {
      const auto* weights = reinterpret_cast<const Word*>(shared + at.project) + k * at.columns * 32 + lane;
      uint32_t x[4];
      Word b[kColumns];
      load_rows(from + k * 32, x);
#pragma unroll
      for (int n = 0; n < kColumns; n++)
        if (n < at.columns) b[n] = weights[n * 32];
#pragma unroll
      for (int n = 0; n < kColumns; n++) {
        if (n >= at.columns) break;
        multiply<Element>(x, b[n].bits[0], b[n].bits[1], sums[n][0]);
        multiply<Element>(x, b[n].bits[2], b[n].bits[3], sums[n][1]);
      }
    }
  }

  // Adds up the splits in their order, bias and residual, and stores the tile, whose first pixel is given.
  __device__ __forceinline__ void finish(int out_row, int out_col) const {
    auto* all = reinterpret_cast<float*>(shared + at.sums);
    float* const corner = all + ((split * at.rows + row) * 16 + lane / 4) * at.sum_row + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kColumns; n++) {
      if (n >= at.columns || row >= at.rows) break;
#pragma unroll
      for (int i = 0; i < 4; i++)
        *reinterpret_cast<float2*>(corner + n * 16 + i / 2 * 8 * at.sum_row + i % 2 * 8) =
            make_float2(sums[n][i % 2][i / 2 * 2], sums[n][i % 2][i / 2 * 2 + 1]);
    }
    __syncthreads();
    const int vectors = a.outputs / 8;
    for (int i = threadIdx.x; i < a.tile_h * a.tile_w * vectors; i += kBlockThreads) {
      const int pixel = i / vectors, channel = (i - pixel * vectors) * 8;
      const int y = out_row + pixel / a.tile_w, x = out_col + pixel % a.tile_w;
      if (y < a.out_height && x < a.out_width)
        store(all + pixel * at.sum_row + channel,
              ((int64_t{blockIdx.z} * a.out_height + y) * a.out_width + x) * a.outputs + channel, channel);
    }
  }

  __device__ __forceinline__ void store(const float* from, int64_t place, int channel) const {
    Word residual = {};
    if (a.residual) residual = load(static_cast<const char*>(a.residual) + place * 2);
    float total[8];
#pragma unroll
    for (int i = 0; i < 8; i++) total[i] = a.project_bias[channel + i];
    for (int s = 0; s < a.splits; s++, from += at.rows * 16 * at.sum_row) {
      const Word words[2] = {reinterpret_cast<const Word*>(from)[0], reinterpret_cast<const Word*>(from)[1]};
#pragma unroll
      for (int i = 0; i < 8; i++) total[i] += __uint_as_float(words[i / 4].bits[i % 4]);
    }
    with_activation(a.project_activation, [&](auto activation) {
#pragma unroll
      for (int i = 0; i < 8; i++) total[i] = activate<activation.value>(total[i], 0);
    });
    Word word;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 more = Convert<Element>::pair(residual, i);
      Convert<Element>::put(word, i, make_float2(total[2 * i] + more.x, total[2 * i + 1] + more.y));
    }
    *reinterpret_cast<Word*>(static_cast<char*>(a.output) + place * 2) = word;
  }
};

}  // namespace cuda
}  // namespace mnv3_fast
