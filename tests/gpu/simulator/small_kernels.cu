// Kernels whose results or faults are known, for the tests of the simulator itself: the argument names one.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "cuda/matrix.h"

namespace {

constexpr int kLanes = 64;

// The sum of each warp in every lane of it.
__global__ void shuffles(float* to) {
  float sum = static_cast<float>(threadIdx.x);
  for (int bits = 16; bits >= 1; bits /= 2) sum += __shfl_xor_sync(0xffffffff, sum, bits);
  const float next = __shfl_down_sync(0xffffffff, static_cast<float>(threadIdx.x), 1);
  const float first = __shfl_sync(0xffffffff, static_cast<float>(threadIdx.x), 0);
  __syncwarp();
  to[blockIdx.x * blockDim.x + threadIdx.x] = sum * 10000 + next * 100 + first;
}

// Each thread gives what its neighbour wrote to shared memory.
template <bool kBarrier>
__global__ void neighbours(float* to) {
  auto* shared = static_cast<float*>(simulator::dynamic_shared());
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kBarrier) __syncthreads();
  to[blockIdx.x * blockDim.x + threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

__global__ void divergent(float* to) {
  if (threadIdx.x < 40) __syncthreads();
  to[threadIdx.x] = 1;
}

__global__ void past_shared(float* to) {
  auto* shared = static_cast<float*>(simulator::dynamic_shared());
  shared[threadIdx.x + 1] = 1;
  to[threadIdx.x] = shared[threadIdx.x];
}

__global__ void past_global(float* to) { to[threadIdx.x + 1] = 1; }

__global__ void misaligned(float* to) {
  struct alignas(16) Word {
    float values[4];
  };
  *reinterpret_cast<Word*>(to + 1) = Word();
}

void start(void (*kernel)(float*), unsigned blocks, float* to, bool reversed) {
  simulator::reversed = reversed;
  void* arguments[] = {&to};
  if (cudaLaunchKernel(kernel, dim3(blocks), dim3(kLanes), arguments, kLanes * sizeof(float), nullptr)) std::exit(2);
}

// Each warp: to [16, 16] = left [16, 16] right [16, 16], the right one in the order of lanes.
template <class Element>
__global__ void product(const Element* left, const mnv3_fast::cuda::Word* right, float* to) {
  using namespace mnv3_fast::cuda;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto* rows = reinterpret_cast<Element*>(dynamic_shared()) + warp * 16 * 24;  // 24 apart
  for (unsigned i = lane; i < 256; i += 32) rows[i / 16 * 24 + i % 16] = left[warp * 256 + i];
  __syncwarp();
  uint32_t a[4];
  load_rows(rows + lane % 16 * 24 + lane / 16 * 8, a);
  const Word b = load(right + warp * 32 + lane);
  float d[2][4] = {};
  for (unsigned half = 0; half < 2; half++) {
    multiply<Element>(a, b.bits[2 * half], b.bits[2 * half + 1], d[half]);
    float* const corner = to + warp * 256 + lane / 4 * 16 + half * 8 + lane % 4 * 2;
    for (unsigned i = 0; i < 4; i++) corner[i / 2 * 8 * 16 + i % 2] = d[half][i];
  }
}

// Of two pairs of matrices on standard input the products, of float32, in both orders of threads.
template <class Element>
void products() {
  constexpr int kWarps = kLanes / 32, kAll = 256 * kWarps;
  const std::unique_ptr<Element[]> left(new Element[kAll]), right(new Element[kAll]);
  const std::unique_ptr<float[]> to(new float[kAll]);
  if (std::fread(left.get(), sizeof(Element), kAll, stdin) + std::fread(right.get(), sizeof(Element), kAll, stdin) !=
      2 * kAll)
    std::exit(2);
  for (const bool reversed : {false, true}) {
    simulator::reversed = reversed;
    const Element* a = left.get();
    const void* b = right.get();
    float* d = to.get();
    void* arguments[] = {&a, &b, &d};
    if (cudaLaunchKernel(product<Element>, dim3(1), dim3(kLanes), arguments, kWarps * 16 * 24 * sizeof(Element),
                         nullptr))
      std::exit(2);
    std::fwrite(to.get(), sizeof(float), kAll, stdout);
  }
}

// Of each float32 of standard input float16 and bfloat16, and what these are as float32.
void conversions() {
  float value;
  while (std::fread(&value, sizeof(value), 1, stdin) == 1) {
    const __half half = __float2half_rn(value);
    const __nv_bfloat16 brain = __float2bfloat16_rn(value);
    const float back[] = {__half2float(half), __bfloat162float(brain)};
    std::fwrite(&half, sizeof(half), 1, stdout);
    std::fwrite(&brain, sizeof(brain), 1, stdout);
    std::fwrite(back, sizeof(back), 1, stdout);
  }
}

}  // namespace

int main(int, char** words) {
  const std::string name = words[1];
  if (name == "conversions") return conversions(), 0;
  if (name == "product_float16") return products<__half>(), 0;
  if (name == "product_bfloat16") return products<__nv_bfloat16>(), 0;
  void (*kernel)(float*) = name == "shuffles"      ? shuffles
                           : name == "barrier"     ? neighbours<true>
                           : name == "race"        ? neighbours<false>
                           : name == "divergent"   ? divergent
                           : name == "past_shared" ? past_shared
                           : name == "past_global" ? past_global
                                                   : misaligned;
  const unsigned blocks = name == "shuffles" || name == "barrier" || name == "race" ? 2 : 1;
  const std::unique_ptr<float[]> one(new float[blocks * kLanes]), other(new float[blocks * kLanes]);
  start(kernel, blocks, one.get(), false);
  start(kernel, blocks, other.get(), true);
  for (unsigned i = 0; i < blocks * kLanes; i++) std::printf("%.9g %.9g\n", one[i], other[i]);
}
