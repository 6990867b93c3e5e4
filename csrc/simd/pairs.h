// Vectors whose lanes come in pairs: 2j and 2j + 1 belong to channel j. A panel of eight channels packed by pairs of
// inputs fills whole vectors, and the two sums of a channel are added up once at the end, for two pixels at a time.
#pragma once
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

// Two floats that lie side by side, in every pair of lanes.
template <int L>
MNV3_INLINE Vec<L> broadcast_pair(int64_t floats) {
  typedef int64_t Pairs __attribute__((vector_size(L * 4)));
  Pairs all = floats + Pairs{};
  MNV3_PIN(all);
  return (Vec<L>)all;
}
template <int L>
MNV3_INLINE Vec<L> broadcast_pair_from(const float* p) {
  int64_t floats;
  __builtin_memcpy(&floats, p, sizeof floats);
  return broadcast_pair<L>(floats);
}
// One float, and zero in the odd lanes.
template <int L>
MNV3_INLINE Vec<L> broadcast_single_from(const float* p) {
  int64_t floats = 0;
  __builtin_memcpy(&floats, p, sizeof(float));
  return broadcast_pair<L>(floats);
}

// The lower half of the result are the sums of a's pairs, the upper half those of b's.
template <int L>
MNV3_INLINE Vec<L> add_pairs(Vec<L> a, Vec<L> b) {
#if defined(MNV3_ISA_AVX512)
  if constexpr (L == 16) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    return (Vec<L>)_mm512_permutex2var_ps((__m512)a, even, (__m512)b) +
           (Vec<L>)_mm512_permutex2var_ps((__m512)a, odd, (__m512)b);
  }
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) {
    const __m256 sums = _mm256_hadd_ps((__m256)a, (__m256)b);  // of a, b, a, b in quarters
    return (Vec<L>)_mm256_permute4x64_pd((__m256d)sums, 0xD8);
  }
#endif
#if defined(__SSE__)
  if constexpr (L == 4)
    return (Vec<L>)_mm_shuffle_ps((__m128)a, (__m128)b, 0x88) + (Vec<L>)_mm_shuffle_ps((__m128)a, (__m128)b, 0xDD);
#endif
#if defined(MNV3_ISA_NEON)
  if constexpr (L == 4) return (Vec<L>)vpaddq_f32((float32x4_t)a, (float32x4_t)b);
#endif
  Vec<L> sums;
  for (int j = 0; j < L / 2; j++) {
    sums[j] = a[2 * j] + a[2 * j + 1];
    sums[L / 2 + j] = b[2 * j] + b[2 * j + 1];
  }
  return sums;
}

// L / 2 floats each as the lower and the upper half of a vector, never by way of memory: no store forwards to a load
// twice as wide.
template <int L>
MNV3_INLINE Vec<L> join_halves(const float* one, const float* other) {
#if defined(MNV3_ISA_AVX512)
  if constexpr (L == 16)
    return (Vec<L>)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(one)), _mm256_loadu_ps(other), 1);
#endif
#if defined(__AVX2__)
  if constexpr (L == 8)
    return (Vec<L>)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(one)), _mm_loadu_ps(other), 1);
#endif
#if defined(__SSE__)
  if constexpr (L == 4) {
    const __m128 low = _mm_castsi128_ps(_mm_loadu_si64(one)), high = _mm_castsi128_ps(_mm_loadu_si64(other));
    return (Vec<L>)_mm_movelh_ps(low, high);
  }
#endif
#if defined(MNV3_ISA_NEON)
  if constexpr (L == 4) return (Vec<L>)vcombine_f32(vld1_f32(one), vld1_f32(other));
#endif
  Vec<L> v;
  __builtin_memcpy(&v, one, L / 2 * sizeof(float));
  __builtin_memcpy(reinterpret_cast<float*>(&v) + L / 2, other, L / 2 * sizeof(float));
  return v;
}
template <int L>
MNV3_INLINE void split_halves(float* one, float* other, Vec<L> v) {
#if defined(MNV3_ISA_AVX512)
  if constexpr (L == 16) {
    _mm256_storeu_ps(one, _mm512_castps512_ps256((__m512)v));
    _mm256_storeu_ps(other, _mm512_extractf32x8_ps((__m512)v, 1));
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) {
    _mm_storeu_ps(one, _mm256_castps256_ps128((__m256)v));
    _mm_storeu_ps(other, _mm256_extractf128_ps((__m256)v, 1));
    return;
  }
#endif
  __builtin_memcpy(one, &v, L / 2 * sizeof(float));
  __builtin_memcpy(other, reinterpret_cast<const float*>(&v) + L / 2, L / 2 * sizeof(float));
}

// Up to L / 2 channels of two pixels, as the lower and the upper half of a vector; the missing ones are zero.
template <int L>
MNV3_INLINE Vec<L> load_halves(const float* one, const float* other, int64_t columns) {
  if (__builtin_expect(columns >= L / 2, 1)) return join_halves<L>(one, other);
  const int64_t half = columns < 0 ? 0 : columns;
  Vec<L> v = {};
  __builtin_memcpy(&v, one, half * sizeof(float));
  __builtin_memcpy(reinterpret_cast<float*>(&v) + L / 2, other, half * sizeof(float));
  return v;
}
template <int L>
MNV3_INLINE void store_halves(float* one, float* other, int64_t columns, Vec<L> v) {
  if (__builtin_expect(columns >= L / 2, 1)) return split_halves<L>(one, other, v);
  const int64_t half = columns < 0 ? 0 : columns;
  __builtin_memcpy(one, &v, half * sizeof(float));
  __builtin_memcpy(other, reinterpret_cast<const float*>(&v) + L / 2, half * sizeof(float));
}

}  // namespace
}  // namespace MNV3_ISA
}  // namespace mnv3_fast
