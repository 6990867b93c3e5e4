// The second launch of an inverted residual block with squeeze-excite: output = act(bias + weight (gate * hidden)) +
// residual, gate = g(fc2_bias + fc2 act(fc1_bias + sum of parts)), NHWC, 16 bit with sums in float32. A block computes
// the gates of a slab of channels, once for a tile of pixels and outputs, and multiplies its slab; what slabs of the
// same tile have is added up in their order by the block that comes last. Products run on tensor cores; what a block
// reads is on its way to shared memory before it waits for anything. Bound by what it reads from L2 and by latency. See
// mnv3_fast/ops/inverted_residual/README.md.
#include "ops/inverted_residual/gated_project_gate.h"

namespace mnv3_fast {
namespace cuda {
namespace {

// Four numbers of float32, as a block reads them back that other blocks of the same launch wrote.
__device__ inline Word load_written(const void* from) {
  Word word;
#ifdef __CUDACC__
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.bits[0]), "=r"(word.bits[1]), "=r"(word.bits[2]), "=r"(word.bits[3])
               : "l"(from)
               : "memory");
#else
  word = *static_cast<const Word*>(from);
#endif
  return word;
}

// What one block does with the gates of its slab.
template <class Element, int kGroups>
struct Block : Gate<Element> {
  using Gate<Element>::Gate;
  using Gate<Element>::a, Gate<Element>::plan, Gate<Element>::thread, Gate<Element>::lane, Gate<Element>::tiles;
  using Gate<Element>::first_row, Gate<Element>::first_group, Gate<Element>::hidden_step;

  template <class T>
  __device__ __forceinline__ T* memory(int offset) const {
    return reinterpret_cast<T*>(this->shared + offset);
  }

  // What the warp's part of the slab adds to its outputs: d[j][h] are four neighbouring outputs of a pixel.
  __device__ __forceinline__ void project(float (&d)[kGroups][2][4]) const {
    const Element* hidden =
        memory<Element>(plan.hidden) + (threadIdx.x / 32 * 16 + lane % 16) * hidden_step() + lane / 16 * 8;
    const float2* gates = memory<float2>(plan.gates) + lane % 4;
    const Word* weight = memory<Word>(plan.weight) + threadIdx.y * kGroups * tiles * 32 + lane;
    float sum[kGroups][2][4] = {};
#pragma unroll 2
    for (int k = threadIdx.z; k < tiles; k += a.slab_warps) {
      Word left;
      load_rows(hidden + k * 16, left.bits);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float2 gate = gates[k * 8 + i / 2 * 4];
        const float2 x = Convert<Element>::pair(left, i);
        Convert<Element>::put(left, i, make_float2(x.x * gate.x, x.y * gate.y));
      }
#pragma unroll
      for (int j = 0; j < kGroups; j++) {
        const Word right = weight[(j * tiles + k) * 32];
        multiply<Element>(left.bits, right.bits[0], right.bits[1], sum[j][0]);
        multiply<Element>(left.bits, right.bits[2], right.bits[3], sum[j][1]);
      }
    }
#pragma unroll
    for (int j = 0; j < kGroups; j++)
#pragma unroll
      for (int i = 0; i < 8; i++) d[j][i / 4][i % 4] = sum[j][i % 4 / 2][i / 4 * 2 + i % 2];
  }

  // Adds up what warps with the same outputs have, in the one with the first part. fc2 was read and makes room.
  __device__ __forceinline__ void add_warps(float (&d)[kGroups][2][4]) const {
    auto* const words = memory<Word>(plan.fc2) + thread;
#pragma unroll
    for (int i = 0; i < 2 * kGroups; i++)
      if (threadIdx.z > 0) words[i * a.threads] = word_of(d[i / 2][i % 2]);
    __syncthreads();
    if (threadIdx.z > 0) return;
#pragma unroll 2
    for (int part = 1; part < a.slab_warps; part++)
#pragma unroll
      for (int i = 0; i < 2 * kGroups; i++) add(words[i * a.threads + part * blockDim.x * blockDim.y], d[i / 2][i % 2]);
  }

  __device__ int pixel(int h) const { return first_row + threadIdx.x / 32 * 16 + lane / 4 + h * 8; }
  __device__ int output(int j) const { return (first_group + threadIdx.y * kGroups + j) * 16 + lane % 4 * 4; }
  __device__ bool is_inside(int j, int h) const {
    return threadIdx.z == 0 && pixel(h) < a.pixels && output(j) < a.outputs;
  }

  // Where the block of a slab keeps the first of what a thread has; the next ones are as many threads further.
  __device__ __forceinline__ Word* partial(int slab) const {
    const int64_t block = (int64_t{blockIdx.z} * gridDim.x + blockIdx.x) * gridDim.y + slab;
    return reinterpret_cast<Word*>(a.partials) + block * (2 * kGroups * blockDim.x * blockDim.y) + thread;
  }

  // Hands in the slab's share; true in the block that comes last, with the sum of all. Only warps with the first part
  // have something, and that of pixels and outputs that are not there is handed in, too.
  __device__ __forceinline__ bool add_slabs(float (&d)[kGroups][2][4]) const {
    if (threadIdx.z == 0) {
      Word* to = partial(blockIdx.y);
#pragma unroll
      for (int i = 0; i < 2 * kGroups; i++, to += blockDim.x * blockDim.y) *to = word_of(d[i / 2][i % 2]);
    }
    auto* const missing = memory<uint32_t>(plan.missing);  // slabs
    __syncthreads();  // all of the block's shares are written before it counts as there
    if (thread == 0) {
      __threadfence();
      *missing = gridDim.y - 1 - atomicInc(a.arrivals + blockIdx.z * gridDim.x + blockIdx.x, gridDim.y - 1);
      __threadfence();
    }
    __syncthreads();
    if (*missing || threadIdx.z > 0) return false;
    memset(d, 0, sizeof(d));
    constexpr int kAtOnce = 8 / kGroups;  // slabs whose shares are on their way together
    const Word* from = partial(0);
#pragma unroll 1
    for (int left = gridDim.y; left > 0; left -= kAtOnce) {
      Word words[kAtOnce * 2 * kGroups] = {};
#pragma unroll
      for (int k = 0; k < kAtOnce * 2 * kGroups; k++, from += blockDim.x * blockDim.y)
        if (k / (2 * kGroups) < left) words[k] = load_written(from);
#pragma unroll
      for (int k = 0; k < kAtOnce * 2 * kGroups; k++) add(words[k], d[k / 2 % kGroups][k % 2]);
    }
    return true;
  }

  // What is added to the outputs, read before it is needed.
  struct Added {
    Word bias[kGroups];
    HalfWord residual[kGroups][2];
  };

  __device__ __forceinline__ int64_t place(int j, int h) const {
    return ((int64_t{blockIdx.z} * a.pixels + pixel(h)) * a.outputs + output(j)) * 2;
  }

  __device__ __forceinline__ void load_added(Added& added) const {
#pragma unroll
    for (int j = 0; j < kGroups; j++) {
      added.bias[j] = {};
      if (output(j) < a.outputs) added.bias[j] = load(a.bias + output(j));
#pragma unroll
      for (int h = 0; h < 2; h++) {
        added.residual[j][h] = {};
        if (a.residual && is_inside(j, h))
          added.residual[j][h] = *reinterpret_cast<const HalfWord*>(static_cast<const char*>(a.residual) + place(j, h));
      }
    }
  }

  __device__ __forceinline__ void store(const float (&d)[kGroups][2][4], const Added& added) const {
#pragma unroll
    for (int i = 0; i < 2 * kGroups; i++) {
      const int j = i / 2, h = i % 2;
      if (!is_inside(j, h)) continue;
      const Word residual = {{added.residual[j][h].bits[0], added.residual[j][h].bits[1]}};
      Word word;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const float* const sum = d[j][h] + 2 * k;
        const float2 b = Convert<float>::pair(added.bias[j], k), r = Convert<Element>::pair(residual, k);
        float2 y = make_float2(sum[0] + b.x, sum[1] + b.y);
        if (a.activation != kNone) y = activate<kAny>(y, a.activation);
        Convert<Element>::put(word, k, make_float2(y.x + r.x, y.y + r.y));
      }
      *reinterpret_cast<HalfWord*>(static_cast<char*>(a.output) + place(j, h)) = {word.bits[0], word.bits[1]};
    }
  }
};

// Blocks: x tiles, y slabs of channels, z images.
template <class Element, int kGroups>
__global__ void __launch_bounds__(kGatedThreads, kGatedBlocks)
    gated_project_kernel(const GatedProject a, const GatedPlan plan) {
  const Block<Element, kGroups> block(a, plan, reinterpret_cast<char*>(dynamic_shared()));
  typename Block<Element, kGroups>::Terms terms;
  block.start_terms(terms);
  block.start_copies();
  block.add_terms(terms);
  wait_for_groups_of_copies<2>();
  __syncthreads();
  block.squeeze();
  wait_for_groups_of_copies<1>();
  __syncthreads();
  block.multiply_squeezed();
  __syncthreads();
  block.finish_gates();
  wait_for_groups_of_copies<0>();
  __syncthreads();
  typename Block<Element, kGroups>::Added added;
  block.load_added(added);
  float d[kGroups][2][4];
  block.project(d);
  if (a.slab_warps > 1) block.add_warps(d);
  if (gridDim.y > 1 && !block.add_slabs(d)) return;
  block.store(d, added);
}

template <class Element, int kGroups>
int32_t start(GatedProject a, cudaStream_t stream) {
  const auto kernel = gated_project_kernel<Element, kGroups>;
  // The same for every launch, since it holds for all that other threads are about to make of this kernel.
  if (const int32_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared))
    return error;
  GatedPlan plan(a);
  void* arguments[] = {&a, &plan};
  const dim3 grid(a.grid_x, a.grid_y, a.grid_z), block(32 * a.row_warps, a.column_warps, a.slab_warps);
  return cudaLaunchKernel(kernel, grid, block, arguments, a.shared, stream);
}

}  // namespace

using Element = MNV3_ELEMENT;  // this file is compiled once for each dtype

template <>
int32_t gated_project<Element>(const GatedProject& a, void* where) {
  const auto stream = static_cast<cudaStream_t>(where);
  return a.groups == 1 ? start<Element, 1>(a, stream) : start<Element, 2>(a, stream);
}

}  // namespace cuda
}  // namespace mnv3_fast
