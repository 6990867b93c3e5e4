// Depthwise convolution for GPUs: act(bias + sum_ij input[y s + i - p, x s + j - p] weight[i, j]), NHWC, 3x3 and 5x5.
// A thread computes a tile of pixels of one vector of channels: it loads a row of inputs in words of 128 bits while it
// multiplies the row before, converts each once and multiplies it into every output that it touches; taps stay in
// registers for the rows of the tile. Bound by memory for 3x3, by the issue of instructions for 5x5. See
// mnv3_fast/ops/depthwise_conv/README.md.
#include "cuda/vector.h"
#include "ops/depthwise_conv/tile.h"

namespace mnv3_fast {
namespace cuda {
namespace {

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

// What one thread does: kHeight x kWidth pixels of a vector of channels. All indices are constants once loops are
// unrolled, so that arrays are registers.
template <class Element, int kSize, int kStride, Activation kActivation, bool kAligned>
struct Worker {
  using Pixels = Tile<kSize, kStride, kAligned>;
  static constexpr int kHeight = Pixels::kHeight, kWidth = Pixels::kWidth, kP = kPairs<Element>;
  static constexpr int kRows = (kHeight - 1) * kStride + kSize, kColumns = (kWidth - 1) * kStride + kSize;
  // Where rows that are unrolled make ptxas move registers to memory, they are a loop.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  static constexpr int kUnroll = kSize == 5 || (kAligned && kHeight == 1) ? 1 : kRows;
#else
  static constexpr int kUnroll = kSize == 5 && !kAligned ? 1 : kRows;
#endif
  static_assert(kHeight == 1 || kStride == 1, "two rows of outputs share the taps of neighbouring rows of inputs");

  const Arguments& a;
  int out_row;
  const int out_col, in_row;
  const int count;       // channels from the first one on, of which a tail may be fewer than a vector
  const uint32_t step;   // bytes from a pixel to the next
  uint32_t columns = 0;  // bit j: column j of the tile's inputs lies in the map
  const char* row;       // of inputs, the one that is loaded next
  const char* taps;      // of the tap that is loaded next
  char* out;             // row of outputs
  float2 total[kP] = {};
  float2 tap[kHeight][kSize][kP];  // the rows of taps that the tile's rows meet in one row of inputs
  float2 sum[kHeight][kWidth][kP];
  Word words[kColumns] = {};  // of a row; those outside of the map stay 0

  __device__ __forceinline__ Worker(const Arguments& arguments, int image, int tile_row, int tile_col, int channel)
      : a(arguments),
        out_row(tile_row * kHeight),
        out_col(tile_col * kWidth),
        in_row(out_row * kStride - a.pad_top),
        count(a.channels - channel),
        step(a.channels * uint32_t{sizeof(Element)}),
        taps(static_cast<const char*>(a.weight) + channel * sizeof(Element)) {
    const int in_col = out_col * kStride - a.pad_left;
    const int64_t origin = (int64_t{image} * a.height + in_row) * a.width + in_col;
    const int64_t target = (int64_t{image} * a.out_height + out_row) * a.out_width + out_col;
    row = static_cast<const char*>(a.input) + origin * step + channel * int64_t{sizeof(Element)};
    out = static_cast<char*>(a.output) + target * step + channel * int64_t{sizeof(Element)};
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

  // A thread without a tile goes along with its warp, reads taps and nothing else, and writes nothing.
  __device__ __forceinline__ void leave_out() {
    columns = 0;
    out_row = a.out_height;
  }

  static __device__ __forceinline__ bool within(int position, int size) {
    return static_cast<uint32_t>(position) < static_cast<uint32_t>(size);  // a negative int is a large unsigned one
  }

  __device__ __forceinline__ void run() {
    bool inside = within(in_row, a.height);
#pragma unroll
    for (int q = 0; q < kColumns; q++)
      load_column<Element, kAligned>(inside ? columns : 0, row, step, count, q, words[q]);
#pragma unroll kUnroll
    for (int r = 0; r < kRows; r++) {
      __syncwarp();  // or the compiler loads taps of later rows here, and moves registers to memory for them
      const bool next = r + 1 < kRows && within(in_row + r + 1, a.height);
      row += int64_t{a.width} * step;
      if (!inside) {
#pragma unroll
        for (int q = 0; q < kColumns; q++) clear(words[q]);
      }
      multiply(r, next ? columns : 0);
      inside = next;
      if (kHeight > 1 && r >= kSize - 1) finish(r - kSize + 1);
    }
    if (kHeight == 1) finish(0);
  }

  // Row r of inputs, column by column, into every sum that it touches. A column's word is free once it is converted,
  // and takes the next row's.
  __device__ __forceinline__ void multiply(int r, uint32_t next) {
#pragma unroll
    for (int q = 0; q < kColumns; q++) {
      float2 x[kP];
#pragma unroll
      for (int k = 0; k < kP; k++) x[k] = Convert<Element>::pair(words[q], k);
      if (r + 1 < kRows) load_column<Element, kAligned>(next, row, step, count, q, words[q]);
      if (q < kSize && r < kSize) {
        Word word = {};
        load_column<Element, kAligned>(1, taps, step, count, 0, word);
#pragma unroll
        for (int k = 0; k < kP; k++) tap[r % kHeight][q][k] = Convert<Element>::pair(word, k);
        taps += step;
      }
#pragma unroll
      for (int o = 0; o < kHeight; o++) {
        const int i = r - o * kStride;
#pragma unroll
        for (int p = 0; p < kWidth; p++) {
          const int j = q - p * kStride;
          if (i < 0 || i >= kSize || j < 0 || j >= kSize) continue;
#pragma unroll
          for (int k = 0; k < kP; k++) sum[o][p][k] = multiply_add(x[k], tap[(r + o) % kHeight][j][k], sum[o][p][k]);
        }
      }
    }
  }

  // Row o of the tile is complete.
  __device__ __forceinline__ void finish(int o) {
    if (out_row + o < a.out_height) {
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
    out += int64_t{a.out_width} * step;
  }
};

// Adds up what the threads of a block have for the same channels, in the order of their tiles: one part of the sums.
template <class Element>
__device__ void add_parts(const float2 (&total)[kPairs<Element>], const Arguments& a) {
  float* shared = dynamic_shared();
  const int width = blockDim.x * kVector<Element>, thread = threadIdx.y * blockDim.x + threadIdx.x;
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
__global__ void __launch_bounds__(kMostThreads<Element>)
    depthwise_conv_kernel(const Arguments a, const int tiles_w, const int tiles) {
  const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * kVector<Element>;
  const int tile = blockIdx.x * blockDim.y + threadIdx.y;
  const bool present = channel < a.channels && tile < tiles;
  const int tile_row = tile / tiles_w;
  Worker<Element, kSize, kStride, kActivation, kAligned> worker(a, blockIdx.z, tile_row, tile - tile_row * tiles_w,
                                                                present ? channel : 0);
  if (!present) worker.leave_out();
  worker.run();
  if (a.sums) add_parts<Element>(worker.total, a);
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    channel_means_kernel(const float* sums, Element* means, const int64_t images, const int64_t parts,
                         const int64_t channels, const int64_t pixels) {
  const int64_t place = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, image = place / channels;
  if (image >= images) return;
  const float* part = sums + image * parts * channels + (place - image * channels);
  float sum = 0;
  for (int64_t i = 0; i < parts; i++) sum += part[i * channels];
  means[place] = Convert<Element>::round(sum / static_cast<float>(pixels));
}

template <class Element, int kSize, int kStride, Activation kActivation, bool kAligned>
int32_t start(Arguments a, cudaStream_t stream) {
  using Pixels = Tile<kSize, kStride, kAligned>;
  const Geometry g = geometry(a, Pixels::kHeight, Pixels::kWidth);
  const dim3 block(g.across, g.down);
  const std::size_t shared = a.sums ? sizeof(float) * kVector<Element> * g.across * g.down : 0;
  const int64_t input = int64_t{a.height} * a.width * a.channels * int64_t{sizeof(Element)};
  const int64_t output = int64_t{a.out_height} * a.out_width * a.channels * int64_t{sizeof(Element)};
  int tiles_w = g.tiles_w, tiles = g.tiles();
  for (int64_t images = a.images; images > 0; images -= kMostBlocks) {
    const dim3 grid(g.parts, g.channel_blocks, static_cast<unsigned>(std::min<int64_t>(images, kMostBlocks)));
    void* arguments[] = {&a, &tiles_w, &tiles};
    const auto kernel = depthwise_conv_kernel<Element, kSize, kStride, kActivation, kAligned>;
    if (const int32_t error = cudaLaunchKernel(kernel, grid, block, arguments, shared, stream)) return error;
    a.input = static_cast<const char*>(a.input) + kMostBlocks * input;
    a.output = static_cast<char*>(a.output) + kMostBlocks * output;
    if (a.sums) a.sums += kMostBlocks * int64_t{g.parts} * a.channels;
  }
  return 0;
}

template <class Element, int kSize, int kStride>
int32_t start(const Arguments& a, cudaStream_t stream) {
  if (!is_aligned(a)) return start<Element, kSize, kStride, kAny, false>(a, stream);
  if (a.activation == kRelu) return start<Element, kSize, kStride, kRelu, true>(a, stream);
  if (a.activation == kHardswish) return start<Element, kSize, kStride, kHardswish, true>(a, stream);
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

template <>
int32_t channel_means<Element>(const float* sums, void* means, int64_t images, int64_t parts, int64_t channels,
                               int64_t pixels, void* stream) {
  auto* to = static_cast<Element*>(means);
  const dim3 grid(static_cast<unsigned>((images * channels + kThreads - 1) / kThreads));
  void* arguments[] = {&sums, &to, &images, &parts, &channels, &pixels};
  return cudaLaunchKernel(channel_means_kernel<Element>, grid, dim3(kThreads), arguments, 0,
                          static_cast<cudaStream_t>(stream));
}

}  // namespace cuda
}  // namespace mnv3_fast
