// Pairs of floats are multiplied under keys that change from place to place, and added up in lanes that do not wait for
// each other: the scheme of xxHash's XXH3 (Yann Collet). Eight lanes, however wide a vector is, so the sums are the
// same for every instruction set. Bound by the units for integers, so wide vectors count.
#include "kernels.h"
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

constexpr uint64_t kStep = 0x9e3779b97f4a7c15;
constexpr int kFloats = 2 * HashLanes::kCount;  // a step
constexpr int kVectors = kFloats / kLanes, kWords = kLanes / 2;
typedef uint64_t Words __attribute__((vector_size(kLanes * 4)));

// The product of the lower and the upper half of each word; the vector extensions would multiply whole words.
MNV3_INLINE Words halves_product(Words x) {
#if defined(MNV3_ISA_AVX512)
  return (Words)_mm512_mul_epu32((__m512i)x, (__m512i)(x >> 32));
#elif defined(MNV3_ISA_AVX2)
  return (Words)_mm256_mul_epu32((__m256i)x, (__m256i)(x >> 32));
#elif defined(__SSE2__)
  return (Words)_mm_mul_epu32((__m128i)x, (__m128i)(x >> 32));
#else
  return (x & 0xffffffff) * (x >> 32);
#endif
}

MNV3_INLINE void add(const float* floats, Words (&sums)[kVectors], Words (&keys)[kVectors]) {
  MNV3_UNROLL for (int v = 0; v < kVectors; v++) {
    Words words;
    __builtin_memcpy(&words, floats + kLanes * v, sizeof words);
    sums[v] += words + halves_product(words ^ keys[v]);
    keys[v] += kStep;
  }
}

}  // namespace

void hash_lanes(const HashLanes& a) {
  Words sums[kVectors], keys[kVectors];
  MNV3_UNROLL for (int v = 0; v < kVectors; v++) {
    sums[v] = Words{};
    MNV3_UNROLL for (int i = 0; i < kWords; i++) keys[v][i] = kStep * static_cast<uint64_t>(2 * (kWords * v + i) + 1);
  }
  int64_t j = 0;
  for (; j + kFloats <= a.count; j += kFloats) add(a.data + j, sums, keys);
  if (j < a.count) {
    float rest[kFloats] = {};
    __builtin_memcpy(rest, a.data + j, static_cast<uint64_t>(a.count - j) * sizeof(float));
    add(rest, sums, keys);
  }
  __builtin_memcpy(a.sums, sums, sizeof sums);
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
