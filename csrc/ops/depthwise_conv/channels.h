// Loads and stores of a vector of channels of the depthwise CUDA kernel: 128 bits at once, or channel by channel.
#pragma once
#include "cuda/vector.h"

namespace mnv3_fast {
namespace cuda {

// Any channels: those that are there one by one, zeros for the rest. The vector words need all, and an aligned address.
template <class Element, bool kAligned>
__device__ __forceinline__ void load_column(uint32_t columns, const char* from, uint32_t step, int count, int column,
                                            Word& word) {
  if constexpr (kAligned) {
    load_if(columns & 1u << column, from + uint64_t{step} * column, word);
  } else if (columns & 1u << column) {
    Element elements[kVector<Element>] = {};
    const auto* source = reinterpret_cast<const Element*>(from + uint64_t{step} * column);
#pragma unroll
    for (int k = 0; k < kVector<Element>; k++)
      if (k < count) elements[k] = source[k];
    memcpy(&word, elements, sizeof(word));
  }
}

template <class Element, bool kAligned>
__device__ __forceinline__ void load_floats(const float* from, int count, float2 (&to)[kPairs<Element>]) {
  float values[kVector<Element>] = {};
  if constexpr (kAligned) {
#pragma unroll
    for (int k = 0; k < kVector<Element>; k += 4) {
      const Word word = load(from + k);
      memcpy(values + k, &word, sizeof(word));
    }
  } else {
#pragma unroll
    for (int k = 0; k < kVector<Element>; k++)
      if (k < count) values[k] = from[k];
  }
#pragma unroll
  for (int k = 0; k < kPairs<Element>; k++) to[k] = make_float2(values[2 * k], values[2 * k + 1]);
}

template <class Element, bool kAligned>
__device__ __forceinline__ void store(char* to, int count, const float2 (&values)[kPairs<Element>]) {
  Word word;
#pragma unroll
  for (int k = 0; k < kPairs<Element>; k++) Convert<Element>::put(word, k, values[k]);
  if constexpr (kAligned) {
    *reinterpret_cast<Word*>(to) = word;
  } else {
    Element elements[kVector<Element>];
    memcpy(elements, &word, sizeof(word));
#pragma unroll
    for (int k = 0; k < kVector<Element>; k++)
      if (k < count) reinterpret_cast<Element*>(to)[k] = elements[k];
  }
}

}  // namespace cuda
}  // namespace mnv3_fast
