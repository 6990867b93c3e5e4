// 128 bits of neighbouring channels as CUDA kernels read, compute and write them: float32, float16 or bfloat16 in
// memory, pairs of float32 in registers. Where this is compiled by another compiler than nvcc, tests run it on the
// host.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace mnv3_fast {
namespace cuda {

struct alignas(16) Word {
  uint32_t bits[4];
};

template <class Element>
constexpr int kVector = 16 / sizeof(Element);
template <class Element>
constexpr int kPairs = kVector<Element> / 2;

__device__ inline Word load(const void* from) {
  Word word;
#ifdef __CUDACC__
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(word.bits[0]), "=r"(word.bits[1]), "=r"(word.bits[2]), "=r"(word.bits[3])
      : "l"(from));
#else
  word = *static_cast<const Word*>(from);
#endif
  return word;
}

// Leaves the word as it is where the condition is 0. In assembly, since the compiler moves a whole word for a condition
// in C++, or branches.
__device__ inline void load_if(uint32_t condition, const void* from, Word& word) {
#ifdef __CUDACC__
  asm("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(word.bits[0]), "+r"(word.bits[1]), "+r"(word.bits[2]), "+r"(word.bits[3])
      : "l"(from), "r"(condition));
#else
  if (condition) word = *static_cast<const Word*>(from);
#endif
}

// In assembly, so that a branch around it stays a branch, and does not become a choice between two values.
__device__ inline void clear(Word& word) {
#ifdef __CUDACC__
  asm("mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
      : "=r"(word.bits[0]), "=r"(word.bits[1]), "=r"(word.bits[2]), "=r"(word.bits[3]));
#else
  word = {};
#endif
}

template <class Element>
struct Convert;

template <>
struct Convert<float> {
  __device__ static float2 pair(const Word& word, int i) {
    return make_float2(__uint_as_float(word.bits[2 * i]), __uint_as_float(word.bits[2 * i + 1]));
  }
  __device__ static void put(Word& word, int i, float2 value) {
    word.bits[2 * i] = __float_as_uint(value.x);
    word.bits[2 * i + 1] = __float_as_uint(value.y);
  }
};

template <>
struct Convert<__half> {
  __device__ static float2 pair(const Word& word, int i) {
    __half2 two;
    memcpy(&two, &word.bits[i], sizeof(two));
    return __half22float2(two);
  }
  __device__ static void put(Word& word, int i, float2 value) {
    const __half2 two = __floats2half2_rn(value.x, value.y);
    memcpy(&word.bits[i], &two, sizeof(two));
  }
};

template <>
struct Convert<__nv_bfloat16> {
  __device__ static float2 pair(const Word& word, int i) {
    float2 pair;
#ifdef __CUDACC__
    // One instruction each, and not after the word is replaced, which would take a copy of it.
    asm volatile("shl.b32 %0, %2, 16; and.b32 %1, %2, 0xffff0000;" : "=f"(pair.x), "=f"(pair.y) : "r"(word.bits[i]));
#else
    pair = make_float2(__uint_as_float(word.bits[i] << 16), __uint_as_float(word.bits[i] & 0xffff0000u));
#endif
    return pair;
  }
  __device__ static void put(Word& word, int i, float2 value) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(value.x, value.y);
    memcpy(&word.bits[i], &two, sizeof(two));
  }
};

// x * y + z, which new architectures do for two numbers in one instruction.
__device__ inline float2 multiply_add(float2 x, float2 y, float2 z) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return __ffma2_rn(x, y, z);
#else
  return make_float2(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
#endif
}

// The shared memory that a launch asks for.
__device__ inline float* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ float memory[];
  return memory;
#else
  return static_cast<float*>(simulator::dynamic_shared());
#endif
}

enum Activation { kNone, kRelu, kHardswish, kRelu6, kAny };

__device__ inline float relu(float x) {
#ifdef __CUDACC__
  asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(x));
  return x;
#else
  return x < 0 ? 0 : x;
#endif
}

__device__ inline float relu6(float x) {
  x = relu(x);
#ifdef __CUDACC__
  asm("min.NaN.f32 %0, %0, 0f40C00000;" : "+f"(x));
  return x;
#else
  return x > 6 ? 6 : x;
#endif
}

__device__ inline float hardswish(float x) { return x * __saturatef(fmaf(x, 1.0f / 6, 0.5f)); }

// As mnv3_fast/ops/elements.py: NaN passes through all of them, and hardswish of -inf is NaN. kAny: what `asked` says.
template <Activation kActivation>
__device__ inline float activate(float x, int asked) {
  if constexpr (kActivation == kAny) {
    if (asked == kRelu) return relu(x);
    if (asked == kHardswish) return hardswish(x);
    return asked == kRelu6 ? relu6(x) : x;
  }
  if constexpr (kActivation == kRelu) return relu(x);
  if constexpr (kActivation == kHardswish) return hardswish(x);
  if constexpr (kActivation == kRelu6) return relu6(x);
  return x;
}

template <Activation kActivation>
__device__ inline float2 activate(float2 x, int asked) {
  return make_float2(activate<kActivation>(x.x, asked), activate<kActivation>(x.y, asked));
}

}  // namespace cuda
}  // namespace mnv3_fast
