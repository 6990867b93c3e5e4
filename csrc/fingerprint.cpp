// Pairs of floats are multiplied under keys that change from place to place, and added up in lanes that do not wait for
// each other: the scheme of xxHash's XXH3 (Yann Collet).
#include "fingerprint.h"

#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace mnv3_fast {
namespace {

constexpr int64_t kSamples = 64;
constexpr uint64_t kStep = 0x9e3779b97f4a7c15;

using Words = uint64_t __attribute__((vector_size(16)));
constexpr int kVectors = 4;
constexpr int64_t kFloats = kVectors * 4;  // a step

// The product of the lower and the upper half of each word; the vector extensions would multiply whole words.
inline Words halves_product(Words x) {
#if defined(__SSE2__)
  return reinterpret_cast<Words>(_mm_mul_epu32(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(x >> 32)));
#else
  return (x & 0xffffffff) * (x >> 32);
#endif
}

struct Lanes {
  Words sums[kVectors], keys[kVectors];

  Lanes() {
    for (int i = 0; i < kVectors; i++) {
      sums[i] = Words{0, 0};
      keys[i] = Words{kStep * static_cast<uint64_t>(4 * i + 1), kStep * static_cast<uint64_t>(4 * i + 3)};
    }
  }

  void add(const float* floats) {
    for (int i = 0; i < kVectors; i++) {
      Words words;
      std::memcpy(&words, floats + 4 * i, sizeof words);
      sums[i] += words + halves_product(words ^ keys[i]);
      keys[i] += kStep;
    }
  }
};

uint64_t mixed(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * kStep;
  return hash ^ hash >> 31;
}

uint64_t hash_floats(const float* floats, int64_t count) {
  Lanes lanes;
  int64_t j = 0;
  for (; j + kFloats <= count; j += kFloats) lanes.add(floats + j);
  if (j < count) {
    float rest[kFloats] = {};
    std::memcpy(rest, floats + j, static_cast<std::size_t>(count - j) * sizeof(float));
    lanes.add(rest);
  }
  uint64_t hash = static_cast<uint64_t>(count);
  for (const Words& sum : lanes.sums) hash = mixed(mixed(hash, sum[0]), sum[1]);
  return hash;
}

int64_t sample(int64_t count, int64_t j) { return j * (count - 1) / (kSamples - 1); }

// Vectors are short and samples lie far apart: both are fetched side by side, some arrays ahead.
constexpr std::size_t kAhead = 4;
void fetch(const Array& a) {
  if (a.count > kWhole) {
    for (int64_t j = 0; j < kSamples; j++) __builtin_prefetch(a.data + sample(a.count, j));
  } else {
    for (int64_t j = 0; j < a.count; j += 16) __builtin_prefetch(a.data + j);
  }
}

}  // namespace

uint64_t fingerprint(const std::vector<Array>& arrays) {
  uint64_t hash = arrays.size();
  for (std::size_t i = 0; i < kAhead && i < arrays.size(); i++) fetch(arrays[i]);
  for (std::size_t i = 0; i < arrays.size(); i++) {
    if (i + kAhead < arrays.size()) fetch(arrays[i + kAhead]);
    const Array& a = arrays[i];
    if (a.count <= kWhole) {
      hash = mixed(hash, hash_floats(a.data, a.count));
      continue;
    }
    float samples[kSamples];
    for (int64_t j = 0; j < kSamples; j++) samples[j] = a.data[sample(a.count, j)];
    hash = mixed(mixed(hash, static_cast<uint64_t>(a.count)), hash_floats(samples, kSamples));
  }
  return hash;
}

}  // namespace mnv3_fast
