// Depthwise convolution for GPUs: act(bias + sum_ij input[y s + i - p, x s + j - p] weight[i, j]), NHWC, 3x3 and 5x5.
// A thread computes a tile of pixels of one vector of channels: it loads a row of inputs in words of 128 bits while it
// multiplies the row before, converts each once and multiplies it into every output that it touches; taps are converted
// once a block and read from shared memory. Bound by memory for 3x3, by the issue of instructions for 5x5. See
// mnv3_fast/ops/depthwise_conv/README.md.
#include "cuda/vector.h"
#include "ops/depthwise_conv/channels.h"
#include "ops/depthwise_conv/tile.h"

namespace mnv3_fast {
namespace cuda {
namespace {

// Four channels, whose taps in float32 are one word of shared memory: a word of 16 bit has two halves.
template <class Element>
constexpr int kHalves = kVector<Element> / 4;
// Words of shared memory from a tap to the next: by half, then by thread along the channels, so that neighbours read
// neighbouring words.
template <class Element>
constexpr int kTapStep = kHalves<Element> * kMostAcross;

// Puts the taps of a block's channels into shared memory, converted once for all of its threads. In a block of four
// rows of threads and more each loads its share at once.
template <class Element, int kSize, bool kAligned>
__device__ __forceinline__ void stage_taps(const Arguments& a, int channel) {
  constexpr int kAll = kSize * kSize, kShare = (kAll + 3) / 4;
  auto* to = reinterpret_cast<float4*>(dynamic_shared()) + threadIdx.x;
  const uint64_t step = a.channels * uint64_t{sizeof(Element)};
  const auto* from = static_cast<const char*>(a.weight) + channel * int64_t{sizeof(Element)};
#pragma unroll 1
  for (int first = threadIdx.y; first < kAll; first += kShare * blockDim.y) {
    Word words[kShare] = {};
#pragma unroll
    for (int i = 0; i < kShare; i++) {
      const int tap = first + i * blockDim.y;
      const bool there = channel < a.channels && tap < kAll;
      load_column<Element, kAligned>(there, from + step * tap, 0, a.channels - channel, 0, words[i]);
    }
#pragma unroll
    for (int i = 0; i < kShare; i++) {
      const int tap = first + i * blockDim.y;
      if (tap >= kAll) continue;
#pragma unroll
      for (int half = 0; half < kHalves<Element>; half++) {
        const float2 x = Convert<Element>::pair(words[i], 2 * half), y = Convert<Element>::pair(words[i], 2 * half + 1);
        to[tap * kTapStep<Element> + half * kMostAcross] = make_float4(x.x, x.y, y.x, y.y);
      }
    }
  }
}

// What one thread does: kHeight x kWidth pixels of a vector of channels. All indices are constants once loops are
// unrolled, so that arrays are registers.
template <class Element, int kSize, int kStride, Activation kActivation, bool kAligned>
struct Worker {
  using Pixels = Tile<kSize, kStride>;
  static constexpr int kHeight = Pixels::kHeight, kWidth = Pixels::kWidth, kP = kPairs<Element>;
  static constexpr int kRows = (kHeight - 1) * kStride + kSize, kColumns = (kWidth - 1) * kStride + kSize;
  // Rows are a loop, but where ptxas then moves registers to memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 1000
  static constexpr int kUnroll = kSize == 5 && kStride == 1 ? kRows : 1;
#else
  static constexpr int kUnroll = 1;
#endif
  static_assert(kHeight == 1 || kStride == 1, "two rows of outputs share the taps of neighbouring rows of inputs");

  const Arguments& a;
  const int in_row;
  int out_col;
  const int count;       // channels from the first one on, of which a tail may be fewer than a vector
  const uint32_t step;   // bytes from a pixel to the next
  uint32_t columns = 0;  // bit j: column j of the tile's inputs lies in the map
  const char* row;       // of inputs, the one that is loaded next
  const float4* taps;    // of the row of taps that meets the row of inputs in the tile's first row
  float2 total[kP] = {};
  float2 sum[kHeight][kWidth][kP];
  Word words[kColumns] = {};  // of a row; those outside of the map stay 0

  __device__ __forceinline__ Worker(const Arguments& arguments, int image, int tile_row, int tile_col, int channel)
      : a(arguments),
        in_row(tile_row * (kHeight * kStride) - a.pad_top),
        out_col(tile_col * kWidth),
        count(a.channels - channel),
        step(a.channels * uint32_t{sizeof(Element)}),
        taps(reinterpret_cast<const float4*>(dynamic_shared()) + threadIdx.x) {
    const int in_col = out_col * kStride - a.pad_left;
    const int64_t origin = (int64_t{image} * a.height + in_row) * a.width + in_col;
    row = static_cast<const char*>(a.input) + origin * step + channel * int64_t{sizeof(Element)};
    float2 bias[kP];
    load_floats<Element, kAligned>(a.bias + channel, count, bias);
#pragma unroll
    for (int o = 0; o < kHeight; o++)
#pragma unroll
      for (int p = 0; p < kWidth; p++)
#pragma unroll
        for (int k = 0; k < kP; k++) sum[o][p][k] = bias[k];
#pragma unroll
    for (int q = 0; q < kColumns; q++) columns |= uint32_t{within(in_col + q, a.width)} << q;
  }

  // A thread without a tile goes along with its block, reads taps and nothing else, and writes nothing.
  __device__ __forceinline__ void leave_out() {
    columns = 0;
    out_col = a.out_width;
  }

  static __device__ __forceinline__ bool within(int position, int size) {
    return static_cast<uint32_t>(position) < static_cast<uint32_t>(size);  // a negative int is a large unsigned one
  }

  // The first row is on its way while the block stages its taps.
  __device__ __forceinline__ void begin() {
    const bool inside = within(in_row, a.height);
#pragma unroll
    for (int q = 0; q < kColumns; q++)
      load_column<Element, kAligned>(inside ? columns : 0, row, step, count, q, words[q]);
  }

  __device__ __forceinline__ void run() {
    int r = 0;
    if (kHeight == 2) compute<true, false, true>(r++);
#pragma unroll kUnroll
    for (; r < kRows - 1; r++) compute<true, kHeight == 2, true>(r);
    if (kHeight == 2) finish(0);
    compute<kHeight == 1, kHeight == 2, false>(r);
    finish(kHeight - 1);
  }

  // Row r of inputs, into the upper and the lower row of outputs; the next one is loaded meanwhile.
  template <bool kUpper, bool kLower, bool kNext>
  __device__ __forceinline__ void compute(int r) {
    const bool next = kNext && within(in_row + r + 1, a.height);
    row += int64_t{a.width} * step;
    if (!within(in_row + r, a.height)) {
#pragma unroll
      for (int q = 0; q < kColumns; q++) clear(words[q]);
    }
#pragma unroll
    for (int half = 0; half < kHalves<Element>; half++) multiply<kUpper, kLower, kNext>(half, next ? columns : 0);
    taps += kSize * kTapStep<Element>;
  }

  // Half of row r of inputs, column by column, into every sum that it touches. A column's word is free once its last
  // half is converted, and takes the next row's.
  template <bool kUpper, bool kLower, bool kNext>
  __device__ __forceinline__ void multiply(int half, uint32_t next) {
    __syncwarp();  // or the compiler reads taps of the next half here, and moves registers to memory for them
    float2 tap[kHeight][kSize][2];
#pragma unroll
    for (int o = 0; o < kHeight; o++) {
      if (!(o == 0 ? kUpper : kLower)) continue;
#pragma unroll
      for (int j = 0; j < kSize; j++) {
        const float4 four = taps[(j - o * kSize) * kTapStep<Element> + half * kMostAcross];
        tap[o][j][0] = make_float2(four.x, four.y), tap[o][j][1] = make_float2(four.z, four.w);
      }
    }
#pragma unroll
    for (int q = 0; q < kColumns; q++) {
      const float2 x[2] = {Convert<Element>::pair(words[q], 2 * half), Convert<Element>::pair(words[q], 2 * half + 1)};
      if (kNext && half + 1 == kHalves<Element>) load_column<Element, kAligned>(next, row, step, count, q, words[q]);
#pragma unroll
      for (int o = 0; o < kHeight; o++) {
        if (!(o == 0 ? kUpper : kLower)) continue;
#pragma unroll
        for (int p = 0; p < kWidth; p++) {
          const int j = q - p * kStride;
          if (j < 0 || j >= kSize) continue;
#pragma unroll
          for (int k = 0; k < 2; k++)
            sum[o][p][2 * half + k] = multiply_add(x[k], tap[o][j][k], sum[o][p][2 * half + k]);
        }
      }
    }
  }

  // Row o of the tile is complete.
  __device__ __forceinline__ void finish(int o) {
    const int out_row = (in_row + a.pad_top) / kStride + o;
    if (out_row < a.out_height) {
      const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * kVector<Element>;
      const int64_t target = (int64_t{blockIdx.z} * a.out_height + out_row) * a.out_width + out_col;
      char* out = static_cast<char*>(a.output) + target * step + channel * int64_t{sizeof(Element)};
#pragma unroll
      for (int p = 0; p < kWidth; p++) {
        if (out_col + p >= a.out_width) continue;
        float2 y[kP];
#pragma unroll
        for (int k = 0; k < kP; k++) {
          y[k] = activate<kActivation>(sum[o][p][k], a.activation);
          total[k] = make_float2(total[k].x + y[k].x, total[k].y + y[k].y);
        }
        store<Element, kAligned>(out + uint64_t{step} * p, count, y);
      }
    }
  }
};

// Adds up what the threads of a block have for the same channels, in the order of their tiles: one part of the sums.
template <class Element>
__device__ void add_parts(const float2 (&total)[kPairs<Element>], const Arguments& a) {
  float* shared = dynamic_shared();
  const int width = blockDim.x * kVector<Element>, thread = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();  // the taps there have been read
  memcpy(shared + thread * kVector<Element>, total, sizeof(total));
  __syncthreads();
  float* part = a.sums + (int64_t{blockIdx.z} * gridDim.x + blockIdx.x) * a.channels;
#pragma unroll 1
  for (int c = thread; c < width; c += blockDim.x * blockDim.y) {
    float sum = 0;
#pragma unroll 1
    for (int tile = 0; tile < static_cast<int>(blockDim.y); tile++) sum += shared[tile * width + c];
    const int channel = blockIdx.y * width + c;
    if (channel < a.channels) part[channel] = sum;
  }
}

// Blocks: x the tiles of a map, y its channels, z images. Threads: x vectors of channels, y tiles.
template <class Element, int kSize, int kStride, Activation kActivation, bool kAligned>
__global__ void __launch_bounds__(kMostThreads) depthwise_conv_kernel(const Arguments a) {
  const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * kVector<Element>;
  const int tile = blockIdx.x * blockDim.y + threadIdx.y;
  const bool present = channel < a.channels && tile < a.tiles_h * a.tiles_w;
  const int tile_row = tile / a.tiles_w;
  Worker<Element, kSize, kStride, kActivation, kAligned> worker(a, blockIdx.z, tile_row, tile - tile_row * a.tiles_w,
                                                                present ? channel : 0);
  if (!present) worker.leave_out();
  worker.begin();
  stage_taps<Element, kSize, kAligned>(a, channel);
  __syncthreads();
  worker.run();
  if (a.sums) add_parts<Element>(worker.total, a);
}

template <class Element, int kSize, int kStride, Activation kActivation, bool kAligned>
int32_t start(Arguments a, cudaStream_t stream) {
  if (!covers(a, Tile<kSize, kStride>::kHeight, Tile<kSize, kStride>::kWidth)) return kUnknown;
  const dim3 grid(a.grid_x, a.grid_y, a.grid_z), block(a.across, a.down);
  void* arguments[] = {&a};
  return cudaLaunchKernel(depthwise_conv_kernel<Element, kSize, kStride, kActivation, kAligned>, grid, block, arguments,
                          a.shared, stream);
}

template <class Element, int kSize, int kStride>
int32_t start(const Arguments& a, cudaStream_t stream) {
  if (!is_aligned(a)) return start<Element, kSize, kStride, kAny, false>(a, stream);
  if (a.activation == kRelu) return start<Element, kSize, kStride, kRelu, true>(a, stream);
  if (a.activation == kHardswish) return start<Element, kSize, kStride, kHardswish, true>(a, stream);
  if (a.activation == kRelu6) return start<Element, kSize, kStride, kRelu6, true>(a, stream);
  return start<Element, kSize, kStride, kNone, true>(a, stream);
}

}  // namespace

using Element = MNV3_ELEMENT;  // this file is compiled once for each dtype

template <>
int32_t depthwise_conv<Element>(const Arguments& a, void* where) {
  const auto stream = static_cast<cudaStream_t>(where);
  if (a.kernel == 3) return a.stride == 1 ? start<Element, 3, 1>(a, stream) : start<Element, 3, 2>(a, stream);
  return a.stride == 1 ? start<Element, 5, 1>(a, stream) : start<Element, 5, 2>(a, stream);
}

}  // namespace cuda
}  // namespace mnv3_fast
