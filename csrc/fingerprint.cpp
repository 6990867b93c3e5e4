#include "fingerprint.h"

#include "kernels.h"

namespace mnv3_fast {
namespace {

constexpr int64_t kSamples = 64;
constexpr uint64_t kStep = 0x9e3779b97f4a7c15;

uint64_t mixed(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * kStep;
  return hash ^ hash >> 31;
}

uint64_t hash_floats(const float* floats, int64_t count) {
  uint64_t sums[HashLanes::kCount];
  kernels().hash_lanes({floats, count, sums});
  uint64_t hash = static_cast<uint64_t>(count);
  for (const uint64_t sum : sums) hash = mixed(hash, sum);
  return hash;
}

// Where the samples of an array lie, from its first value to its last: a step in units of 2^-32, rounded up.
uint64_t sample_step(int64_t count) {
  return ((static_cast<uint64_t>(count - 1) << 32) + kSamples - 2) / (kSamples - 1);
}
int64_t sample(uint64_t step, int64_t j) { return static_cast<int64_t>(static_cast<uint64_t>(j) * step >> 32); }

// Vectors are short and samples lie far apart: both are fetched side by side, some arrays ahead.
constexpr std::size_t kArraysAhead = 4;
void fetch(const Array& a) {
  if (a.count > kWhole) {
    const uint64_t step = sample_step(a.count);
    for (int64_t j = 0; j < kSamples; j++) __builtin_prefetch(a.data + sample(step, j));
  } else {
    for (int64_t j = 0; j < a.count; j += 16) __builtin_prefetch(a.data + j);
  }
}

}  // namespace

uint64_t fingerprint(const std::vector<Array>& arrays) {
  uint64_t hash = arrays.size();
  for (std::size_t i = 0; i < kArraysAhead && i < arrays.size(); i++) fetch(arrays[i]);
  for (std::size_t i = 0; i < arrays.size(); i++) {
    if (i + kArraysAhead < arrays.size()) fetch(arrays[i + kArraysAhead]);
    const Array& a = arrays[i];
    if (a.count <= kWhole) {
      hash = mixed(hash, hash_floats(a.data, a.count));
      continue;
    }
    float samples[kSamples];
    const uint64_t step = sample_step(a.count);
    for (int64_t j = 0; j < kSamples; j++) samples[j] = a.data[sample(step, j)];
    hash = mixed(mixed(hash, static_cast<uint64_t>(a.count)), hash_floats(samples, kSamples));
  }
  return hash;
}

}  // namespace mnv3_fast
