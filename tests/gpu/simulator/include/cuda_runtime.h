// What the project's CUDA sources use of CUDA's header of this name, on the host (simulator.h). Written from the CUDA
// C++ programming guide.
#pragma once
#include <cmath>
#include <tuple>
#include <utility>

#include "simulator.h"

#define __global__
#define __device__
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

struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

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

template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments, std::size_t shared,
                             cudaStream_t) {
  const bool fits = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= 0x7fffffff && grid.y <= 65535 &&
                    grid.z <= 65535 && block.x * block.y * block.z <= 1024 && block.x >= 1 && shared <= 48 << 10;
  if (!fits) return cudaErrorInvalidValue;
  simulator::launch(grid, block, shared, [&] { simulator::call(kernel, arguments, std::index_sequence_for<P...>()); });
  return cudaSuccess;
}
