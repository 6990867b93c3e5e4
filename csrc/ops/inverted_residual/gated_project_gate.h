// The gate of squeeze-excite in the kernel of gated_project.cu: from the terms of its first layer to the gates of a
// slab of channels, while what they multiply is on its way to shared memory.
#pragma once
#include "cuda/copy.h"
#include "cuda/matrix.h"
#include "ops/inverted_residual/gated_project_tile.h"

namespace mnv3_fast {
namespace cuda {
namespace {

struct alignas(8) HalfWord {
  uint32_t bits[2];
};

__device__ inline Word word_of(const float (&values)[4]) {
  Word word;
  memcpy(&word, values, sizeof(word));
  return word;
}

__device__ inline void add(Word word, float (&to)[4]) {
#pragma unroll
  for (int k = 0; k < 4; k++) to[k] += __uint_as_float(word.bits[k]);
}

__device__ inline float apply_gate(float x, float slope, int gate) {
  if (gate == 1) return __fdividef(1, 1 + expf(-x));
  x = fmaf(slope, x, 0.5f);
  return x < 0 ? 0 : x > 1 ? 1 : x;  // NaN passes
}

// What one block does. Barriers stand between the steps, in the kernel. Threads: x 16 pixels a warp, y outputs, z parts
// of the slab.
template <class Element>
struct Gate {
  static constexpr int kAhead = 8;  // terms that a thread loads before all else

  const GatedProject& a;
  const GatedPlan& plan;
  char* const shared;
  const int thread, warp, lane;
  const int channel;  // first of the slab
  const int tiles;    // of 16 channels in the slab
  int first_row;      // of the block's tile
  int first_group;    // of 16 outputs

  __device__ __forceinline__ Gate(const GatedProject& arguments, const GatedPlan& plan, char* memory)
      : a(arguments),
        plan(plan),
        shared(memory),
        thread(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)),
        warp(thread >> 5),
        lane(threadIdx.x % 32),
        channel(blockIdx.y * a.slab),
        tiles((a.channels - channel < a.slab ? a.channels - channel + 15 : a.slab) / 16) {
    const int tile_m = quotient(blockIdx.x, plan.tiles_n);
    first_row = tile_m * a.row_warps * 16;
    first_group = (blockIdx.x - tile_m * plan.tiles_n.by) * a.column_warps * a.groups;
  }

  static __device__ __forceinline__ int quotient(uint32_t n, const Divisor& divisor) {
    return static_cast<int>(divisor.inverse ? (uint64_t{n} * divisor.inverse) >> 32 : n);
  }

  template <class T>
  __device__ __forceinline__ T* memory(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }

  template <int kUnroll>
  __device__ __forceinline__ void copy(int to, const void* from, int words) const {
    const char* source = static_cast<const char*>(from) + thread * 16;
    char* target = shared + to + thread * 16;
#pragma unroll kUnroll
    for (int i = thread; i < words; i += a.threads, source += a.threads * 16, target += a.threads * 16)
      copy_later(target, source, true);
  }

  __device__ int hidden_step() const { return a.slab + kGatedPad; }

  // All that is read more than once or late, in the order in which it is used: biases, fc2, and what is multiplied,
  // pixels outside of the map and channels behind the last as zeros.
  __device__ __forceinline__ void start_copies() const {
    copy<1>(plan.fc1_bias, a.fc1_bias, a.squeeze / 4);
    copy<1>(plan.fc2_bias, a.fc2_bias + channel, (a.channels - channel < a.slab ? a.channels - channel : a.slab) / 4);
    end_group_of_copies();
    const char* const fc2 = static_cast<const char*>(a.fc2_weight);
    copy<4>(plan.fc2, fc2 + int64_t{channel / 16} * plan.steps * kFragment, tiles * plan.steps * 32);
    end_group_of_copies();
    for (int j = 0; j < a.column_warps * a.groups; j++) {
      if ((first_group + j) * 16 >= a.outputs) break;
      const int64_t fragment = int64_t{first_group + j} * plan.tiles + channel / 16;
      const char* const from = static_cast<const char*>(a.weight) + fragment * kFragment;
      copy<1>(plan.weight + j * tiles * kFragment, from, tiles * 32);
    }
    const int words = plan.words.by, step_row = quotient(a.threads, plan.words),
              step_word = a.threads - step_row * words;
    const char* image = static_cast<const char*>(a.hidden) + int64_t{blockIdx.z} * a.pixels * a.channels * 2;
    int y = quotient(thread, plan.words), x = thread - y * words;
    while (y < a.row_warps * 16) {
      const bool inside = first_row + y < a.pixels && channel + x * 8 < a.channels;
      const int place = (first_row + y) * a.channels + channel + x * 8;
      copy_later(memory<Element>(plan.hidden) + y * hidden_step() + x * 8, inside ? image + int64_t{place} * 2 : image,
                 inside);
      x += step_word, y += step_row;
      if (x >= words) x -= words, y++;
    }
    end_group_of_copies();
  }

  // Terms of the gate's first layer: some threads side by side along them, each with some on their way at a time.
  struct Terms {
    Word words[kAhead];
    const float* next;
    int count;  // from the next one on, of which every plan.terms-th is the thread's
  };

  __device__ __forceinline__ void load_terms(Terms& terms) const {
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      terms.words[i] = {};
      load_if(terms.count > 0, terms.next, terms.words[i]);
      terms.next += plan.terms * a.squeeze, terms.count -= plan.terms;
    }
  }

  __device__ __forceinline__ void start_terms(Terms& terms) const {
    const int first = quotient(thread, plan.across), place = (thread - first * plan.across.by) * 4;
    terms.count = first < plan.terms ? a.count - first : 0;
    terms.next = a.parts + (int64_t{blockIdx.z} * a.count + first) * a.squeeze + place;
    load_terms(terms);
  }

  __device__ __forceinline__ void add_terms(Terms& terms) const {
    float sum[4] = {};
    for (;;) {
#pragma unroll
      for (int i = 0; i < kAhead; i++) add(terms.words[i], sum);
      if (terms.count <= 0) break;
      load_terms(terms);
    }
    if (thread < plan.terms * static_cast<int>(plan.across.by)) memory<Word>(plan.sums)[thread] = word_of(sum);
  }

  // The squeezed channels as the right factor of a product all of whose columns they are: pairs in a lane's order.
  __device__ __forceinline__ void squeeze() const {
#pragma unroll 1
    for (int pair = thread; pair < plan.steps * 8; pair += a.threads) {
      float2 sum = {};
      if (pair * 2 < a.squeeze) {
        int i = 0;
#pragma unroll 4
        do {  // there is one at least, and the compiler makes a second loop where it does not know
          const float2 term = memory<float2>(plan.sums)[i * (a.squeeze / 2) + pair];
          sum = make_float2(sum.x + term.x, sum.y + term.y);
        } while (++i < plan.terms);
        const float2 bias = memory<float2>(plan.fc1_bias)[pair];
        sum = activate<kAny>(make_float2(sum.x + bias.x, sum.y + bias.y), a.squeeze_activation);
      }
      Word word;
      Convert<Element>::put(word, 0, sum);
      memory<uint32_t>(plan.squeezed)[(pair & ~7) + (pair & 3) * 2 + (pair >> 2 & 1)] = word.bits[0];
    }
  }

  static __device__ __forceinline__ void multiply_words(Word left, HalfWord right, float (&d)[4]) {
    multiply<Element>(left.bits, right.bits[0], right.bits[1], d);
  }

  // fc2 times the squeezed channels; warps share a product where there are more of them than tiles of channels.
  __device__ __forceinline__ void multiply_squeezed() const {
    int share = 0, tile = warp;
    for (; tile >= a.slab >> 4 && share + 1 < plan.shares; share++) tile -= a.slab >> 4;
    for (; tile < tiles; tile += a.threads >> 5) {
      const Word* left = memory<Word>(plan.fc2) + (tile * plan.steps + share) * 32 + lane;
      const HalfWord* right = memory<HalfWord>(plan.squeezed) + share * 4 + lane % 4;
      float even[4] = {}, odd[4] = {};  // two sums, since the next product of a sum waits for the one before
      int step = share;
#pragma unroll 2
      for (; step + plan.shares < plan.steps; step += 2 * plan.shares) {
        multiply_words(*left, *right, even);
        multiply_words(left[plan.shares * 32], right[plan.shares * 4], odd);
        left += plan.shares * 64, right += plan.shares * 8;
      }
      if (step < plan.steps) multiply_words(*left, *right, even);
      float* const to = memory<float>(plan.products) + share * a.slab + tile * 16 + lane / 4;
      if (lane % 4 == 0) to[0] = even[0] + odd[0], to[8] = even[2] + odd[2];  // all columns are equal
    }
  }

  __device__ __forceinline__ void finish_gates() const {
#pragma unroll 1
    for (int c = thread; c < tiles * 16; c += a.threads) {
      float gate = 0;
      if (channel + c < a.channels) {
        int share = 0;
#pragma unroll 1
        do gate += memory<float>(plan.products)[share * a.slab + c];
        while (++share < plan.shares);
        gate = apply_gate(gate + memory<float>(plan.fc2_bias)[c], a.slope, a.gate);
      }
      memory<float>(plan.gates)[c] = gate;
    }
  }
};

}  // namespace
}  // namespace cuda
}  // namespace mnv3_fast
