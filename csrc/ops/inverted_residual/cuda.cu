// Inverted residual block for GPUs, NHWC: expand 1x1 -> depthwise -> project 1x1 (+ input) of a tile of pixels in one
// launch, or up to the gate, for the hidden channels of a slab: the depthwise output, and what the slab adds to the
// gate's first layer. Hidden pixels and weights are in shared memory; a chunk of hidden channels at a time is expanded
// on tensor cores, convolved, and multiplied into the outputs, which stay in registers until the last chunk. The
// weights of a step are copied while the step before computes. Bound by latency at the batches that it is made for. See
// mnv3_fast/ops/inverted_residual/README.md.
#include "ops/inverted_residual/hidden.h"
#include "ops/inverted_residual/projection.h"

namespace mnv3_fast {
namespace cuda {
namespace {

// Blocks of a multiprocessor, which says how many registers a thread may have. With two, ptxas moves registers of the
// largest kernel to memory where it multiplies two numbers at a time.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <int kSize, int kStride, bool kProject>
constexpr int kLeastBlocks = kSize == 5 && kStride == 2 && kProject ? 1 : 2;
#else
template <int kSize, int kStride, bool kProject>
constexpr int kLeastBlocks = 2;
#endif

// Blocks: x the tiles of the output map, y the slabs, z images.
template <class Element, int kSize, int kStride, bool kProject>
__global__ void __launch_bounds__(kBlockThreads, kLeastBlocks<kSize, kStride, kProject>)
    inverted_residual_kernel(const InvertedResidual a, const BlockShared at) {
  const Hidden<Element, kSize, kStride, kProject> hidden(a, at);
  hidden.copy_expand(hidden.slab_begin);
  if constexpr (!kProject) {
    hidden.fill();
    wait_for_copies();
    __syncthreads();
    hidden.expand(hidden.slab_begin);
    __syncthreads();
    hidden.depthwise(hidden.slab_begin);
    hidden.squeeze();
  } else {
    hidden.fill();
    end_group_of_copies();
    hidden.copy_project(hidden.slab_begin);
    Projection<Element> projection(a, at, hidden.shared);
    for (int first = hidden.slab_begin; first < hidden.slab_end; first += a.chunk) {
      wait_for_groups_of_copies<1>();  // all but the weights of this chunk's projection
      __syncthreads();
      hidden.expand(first);
      __syncthreads();
      hidden.copy_expand(first + a.chunk);
      hidden.depthwise(first);
      wait_for_groups_of_copies<1>();  // all but the weights of the next chunk's expansion
      __syncthreads();
      projection.add(hidden.count(first) / 16);
      __syncthreads();
      hidden.copy_project(first + a.chunk);
    }
    projection.finish(hidden.out_row, hidden.out_col);
  }
}

template <class Element, int kSize, int kStride, bool kProject>
int32_t start(const InvertedResidual& a, cudaStream_t stream) {
  const auto kernel = inverted_residual_kernel<Element, kSize, kStride, kProject>;
  InvertedResidual copy = a;
  BlockShared at(a);
  void* arguments[] = {&copy, &at};
  // The same for every launch, since it holds for all that other threads are about to make of this kernel.
  if (const int32_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostBlockShared))
    return error;
  return cudaLaunchKernel(kernel, dim3(a.grid_x, a.grid_y, a.grid_z), dim3(kBlockThreads), arguments, a.shared, stream);
}

template <class Element, int kSize, int kStride>
int32_t start(const InvertedResidual& a, cudaStream_t stream) {
  return a.project ? start<Element, kSize, kStride, true>(a, stream) : start<Element, kSize, kStride, false>(a, stream);
}

}  // namespace

using Element = MNV3_ELEMENT;  // this file is compiled once for each dtype

template <>
int32_t inverted_residual<Element>(const InvertedResidual& a, void* where) {
  const auto stream = static_cast<cudaStream_t>(where);
  if (a.kernel == 3) return a.stride == 1 ? start<Element, 3, 1>(a, stream) : start<Element, 3, 2>(a, stream);
  return a.stride == 1 ? start<Element, 5, 1>(a, stream) : start<Element, 5, 2>(a, stream);
}

}  // namespace cuda
}  // namespace mnv3_fast
