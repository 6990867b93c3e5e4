// What the project's CUDA sources use of CUDA's header of this name, on the host (simulator.h). Written from the CUDA
// C++ programming guide.
#pragma once
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "simulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (simulator::thread_index)
#define blockIdx (simulator::block_index)
#define blockDim (simulator::block)
#define gridDim (simulator::grid)

inline void __syncthreads() { simulator::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffff) { simulator::wait_for_warp(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return simulator::shuffle(mask, value, from & 31);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return simulator::shuffle(mask, value, simulator::lane() ^ bits);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = simulator::lane();
  return simulator::shuffle(mask, value, lane + by < 32 ? lane + by : lane);
}

inline void __threadfence() {}  // one thread runs at a time, and sees what those before it wrote
inline unsigned atomicInc(unsigned* at, unsigned most) {
  const unsigned before = *at;
  *at = before >= most ? 0 : before + 1;
  return before;
}

struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }  // NaN gives 0
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
using cudaStream_t = void*;
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }

namespace simulator {
template <class... P, std::size_t... I>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::decay_t<P>*>(arguments[I])...);
}
}  // namespace simulator

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

// 99 KB, the least that a block of any GPU from compute capability 8.0 on may have. Less is refused, since it would
// hold for the launches that other threads make of the kernel meanwhile.
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int value) {
  if (value != 99 << 10) return cudaErrorInvalidValue;
  simulator::most_shared[reinterpret_cast<const void*>(kernel)] = value;
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments, std::size_t shared,
                             cudaStream_t) {
  const auto asked = simulator::most_shared.find(reinterpret_cast<const void*>(kernel));
  const std::size_t most = std::max(48 << 10, asked == simulator::most_shared.end() ? 0 : asked->second);
  const bool fits = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= 0x7fffffff && grid.y <= 65535 &&
                    grid.z <= 65535 && block.x * block.y * block.z <= 1024 && block.x >= 1 && shared <= most;
  if (!fits) return cudaErrorInvalidValue;
  simulator::launch(grid, block, shared, [&] { simulator::call(kernel, arguments, std::index_sequence_for<P...>()); });
  return cudaSuccess;
}
