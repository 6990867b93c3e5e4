// The vector words that the kernels are written in: `Vec<L>` is L floats (GCC/Clang vector extensions).
// Every kernel file is compiled once per instruction set with MNV3_ISA set to its namespace, so all of this has
// internal linkage: the linker must never pick an AVX-512 copy of an inline function for an older CPU.
#pragma once
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MNV3_INLINE inline __attribute__((always_inline))
#define MNV3_ALWAYS __attribute__((always_inline))  // of a lambda
#define MNV3_UNROLL _Pragma("GCC unroll 64")

// An empty statement that claims to change x: keeps GCC from hoisting the next step's broadcasts above this step's
// FMAs, which spills registers (six of them in the 14 x 2 tile).
#if defined(MNV3_ISA_AVX512)
#define MNV3_PIN(x) asm volatile("" : "+v"(x))
#elif defined(__x86_64__)
#define MNV3_PIN(x) asm volatile("" : "+x"(x))
#elif defined(__aarch64__)
#define MNV3_PIN(x) asm volatile("" : "+w"(x))
#else
#define MNV3_PIN(x) (void)(x)
#endif

// The same for an index or pointer: keeps GCC from hoisting sums of it into registers that a tile needs.
#define MNV3_PIN_INDEX(x) asm volatile("" : "+r"(x))

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

template <int L>
struct VectorOf {
  typedef float type __attribute__((vector_size(L * 4)));
};
template <int L>
using Vec = typename VectorOf<L>::type;

#if defined(MNV3_ISA_AVX512)
constexpr int kLanes = 16;
constexpr int kTileRows =
    14;  // pixels of a 1x1 conv tile: 14 x 2 accumulators + 2 weights + 1 broadcast of 32 registers
constexpr int kTilePanels = 2;   // panels of 16 channels side by side in a tile
constexpr int kRowPanels = 4;    // the same for a single pixel
constexpr int kTilePixels = 14;  // output pixels of a depthwise tile
constexpr int kStemPixels = 14;  // and of a stem tile
#elif defined(MNV3_ISA_AVX2)
constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // 6 x 2 accumulators + 2 weights + 1 broadcast of 16 registers
constexpr int kTilePanels = 1;
constexpr int kRowPanels = 4;
constexpr int kTilePixels = 7;
constexpr int kStemPixels = 6;
#elif defined(MNV3_ISA_NEON)
constexpr int kLanes = 4;
constexpr int kTileRows = 6;  // 6 x 4 accumulators + 4 weights + 2 inputs of 32 registers
constexpr int kTilePanels = 1;
constexpr int kRowPanels = 2;    // 8 accumulators, as many as multiply-adds are under way; 4 panels spill
constexpr int kTilePixels = 14;  // 14 accumulators + 5 weights + 2 inputs
constexpr int kStemPixels = 5;   // with 6, GCC fetches so many pixels ahead that it spills
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 3;
constexpr int kTilePanels = 1;
constexpr int kRowPanels = 4;
constexpr int kTilePixels = 7;
constexpr int kStemPixels = 3;
#endif
#if defined(__aarch64__)
constexpr int kRowsAPointer = 1;  // rows of a 1x1 conv tile: 31 general registers, and loads that move their pointer
#else
constexpr int kRowsAPointer = 3;  // the others are reached by the stride as an index register
#endif
#if defined(MNV3_ISA_AVX512) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
#if defined(MNV3_ISA_AVX2)
constexpr int kTallRows =
    7;  // of a tile for rows of 7 and 14 pixels, which reads a weight again for each of its pixels
#else
constexpr int kTallRows = kTileRows;
#endif
constexpr int kPanel = 16;  // channels of a packed panel, the same for every instruction set
constexpr int kPanelVectors = kPanel / kLanes;

template <int L>
MNV3_INLINE Vec<L> load(const float* p) {
  Vec<L> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <int L>
MNV3_INLINE void store(float* p, Vec<L> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <int L>
MNV3_INLINE Vec<L> broadcast(float x) {
  return x - Vec<L>{};
}
// The same for several multiply-adds, of a value in memory. On x86 it fills a register once. On ARM the multiply-add
// takes a lane of the scalar's register, which GCC finds if the scalar is pinned: filling a register (`ld1r`, `dup`)
// uses the units that multiply.
template <int L>
MNV3_INLINE Vec<L> broadcast_from(const float* p) {
#if defined(__aarch64__)
  float x = *p;
  MNV3_PIN(x);
  return broadcast<L>(x);
#else
  Vec<L> x = broadcast<L>(*p);
  MNV3_PIN(x);
  return x;
#endif
}
// max(x, low) and min(x, high) that keep a NaN in x. On x86 that is the instruction itself with x as its second
// operand, which GCC does not find in a comparison.
template <int L>
MNV3_INLINE Vec<L> at_least(Vec<L> x, Vec<L> low) {
#if defined(MNV3_ISA_AVX512)
  if constexpr (L == 16) return (Vec<L>)_mm512_max_ps((__m512)low, (__m512)x);
#endif
#if defined(__AVX__)
  if constexpr (L == 8) return (Vec<L>)_mm256_max_ps((__m256)low, (__m256)x);
#endif
#if defined(__SSE__)
  if constexpr (L == 4) return (Vec<L>)_mm_max_ps((__m128)low, (__m128)x);
#endif
#if defined(MNV3_ISA_NEON)
  if constexpr (L == 4) return (Vec<L>)vmaxq_f32((float32x4_t)low, (float32x4_t)x);  // NaN if either is
#endif
  return x < low ? low : x;
}
template <int L>
MNV3_INLINE Vec<L> at_most(Vec<L> x, Vec<L> high) {
#if defined(MNV3_ISA_AVX512)
  if constexpr (L == 16) return (Vec<L>)_mm512_min_ps((__m512)high, (__m512)x);
#endif
#if defined(__AVX__)
  if constexpr (L == 8) return (Vec<L>)_mm256_min_ps((__m256)high, (__m256)x);
#endif
#if defined(__SSE__)
  if constexpr (L == 4) return (Vec<L>)_mm_min_ps((__m128)high, (__m128)x);
#endif
#if defined(MNV3_ISA_NEON)
  if constexpr (L == 4) return (Vec<L>)vminq_f32((float32x4_t)high, (float32x4_t)x);
#endif
  return x > high ? high : x;
}
// The first n lanes, the others zero.
template <int L>
MNV3_INLINE Vec<L> load_first(const float* p, int64_t n) {
  Vec<L> v = {};
  __builtin_memcpy(&v, p, (n < 0 ? 0 : n > L ? L : n) * sizeof(float));
  return v;
}
template <int L>
MNV3_INLINE void store_first(float* p, Vec<L> v, int64_t n) {
  __builtin_memcpy(p, &v, (n < 0 ? 0 : n > L ? L : n) * sizeof(float));
}

// A tile in registers to `columns` channels of Rows pixels. Whole vectors are the rule, so they are decided on once.
// No loop over the tile may stay a loop: an index that is not a constant would put the whole tile into memory.
template <int L, int Rows, int Vectors>
MNV3_INLINE void store_tile(float* p, int64_t stride, int64_t columns, const Vec<L> (&tile)[Rows][Vectors]) {
  if (__builtin_expect(columns >= Vectors * L, 1)) {
    MNV3_UNROLL for (int i = 0; i < Rows; i++) MNV3_UNROLL for (int v = 0; v < Vectors; v++)
        store<L>(p + i * stride + v * L, tile[i][v]);
    return;
  }
  if (columns <= 0) return;  // lanes past the last channel
#if defined(MNV3_ISA_AVX512)
  if constexpr (L == 16 && Vectors == 1) {
    if (columns == 8) {
      MNV3_UNROLL for (int i = 0; i < Rows; i++)
          _mm256_storeu_ps(p + i * stride, _mm512_castps512_ps256((__m512)tile[i][0]));
      return;
    }
  }
#endif
  float copy[Rows][Vectors * L];
  MNV3_UNROLL for (int i = 0; i < Rows; i++) MNV3_UNROLL for (int v = 0; v < Vectors; v++)
      store<L>(copy[i] + v * L, tile[i][v]);
  for (int i = 0; i < Rows; i++) __builtin_memcpy(p + i * stride, copy[i], columns * sizeof(float));
}
// tile += map.
template <int L, int Rows, int Vectors>
MNV3_INLINE void add_tile(const float* p, int64_t stride, int64_t columns, Vec<L> (&tile)[Rows][Vectors]) {
  if (__builtin_expect(columns >= Vectors * L, 1)) {
    MNV3_UNROLL for (int i = 0; i < Rows; i++) MNV3_UNROLL for (int v = 0; v < Vectors; v++) tile[i][v] +=
        load<L>(p + i * stride + v * L);
  } else {
    float copy[Rows][Vectors * L];
    for (int i = 0; i < Rows; i++) __builtin_memcpy(copy[i], p + i * stride, columns * sizeof(float));
    MNV3_UNROLL for (int i = 0; i < Rows; i++) MNV3_UNROLL for (int v = 0; v < Vectors; v++) tile[i][v] +=
        load<L>(copy[i] + v * L);
  }
}

}  // namespace
}  // namespace MNV3_ISA
}  // namespace mnv3_fast
