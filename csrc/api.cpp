#include "api.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels.h"
#include "pages.h"

namespace {

using mnv3_fast::InstructionSet;

constexpr int64_t kWhole = 4096;  // arrays up to this size are hashed whole: every BatchNorm vector
constexpr int64_t kSamples = 64;

struct Names {
  const char* names[8] = {};
  int count = 0;
  void add(const char* name) { names[count++] = name; }
};

}  // namespace

const char* const* mnv3_fast_cpu_features() {
  static const Names features = [] {
    Names n;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) n.add("avx2");
    if (__builtin_cpu_supports("fma")) n.add("fma");
    if (__builtin_cpu_supports("avx512f")) n.add("avx512f");
    if (__builtin_cpu_supports("avx512bw")) n.add("avx512bw");
    if (__builtin_cpu_supports("avx512vl")) n.add("avx512vl");
    if (__builtin_cpu_supports("avx512dq")) n.add("avx512dq");
    if (__builtin_cpu_supports("avx512vnni")) n.add("avx512vnni");
#endif
    return n;
  }();
  return features.names;
}

const char* const* mnv3_fast_instruction_sets() {
  static const Names sets = [] {
    Names n;
    for (int i = 0; i < mnv3_fast::kInstructionSets; i++) {
      const auto set = static_cast<InstructionSet>(i);
      if (mnv3_fast::is_available(set)) n.add(mnv3_fast::name_of(set));
    }
    return n;
  }();
  return sets.names;
}

const char* mnv3_fast_instruction_set() { return mnv3_fast::name_of(mnv3_fast::instruction_set()); }

bool mnv3_fast_set_instruction_set(const char* name) {
  for (int i = 0; i < mnv3_fast::kInstructionSets; i++) {
    const auto set = static_cast<InstructionSet>(i);
    if (std::strcmp(mnv3_fast::name_of(set), name) != 0 || !mnv3_fast::is_available(set)) continue;
    mnv3_fast::set_instruction_set(set);
    return true;
  }
  return false;
}

const char* mnv3_fast_take_variant(const char* op) { return mnv3_fast::take_variant(op); }

double mnv3_fast_fma_peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    int64_t macs = 0;
    const auto start = Clock::now();
    mnv3_fast::kernels().fma_peak({100000, &macs});
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, static_cast<double>(macs) / took * 1e-9);
  } while (Clock::now() < end);
  return best;
}

uint64_t mnv3_fast_fingerprint(const std::uintptr_t* pointers, const int64_t* counts, std::size_t n) {
  constexpr uint64_t kPrime = 0x9e3779b97f4a7c15;
  uint64_t lanes[4] = {1, 2, 3, 4};  // four chains: one alone waits for each product
  const auto mix = [&lanes](int64_t lane, uint64_t bits) {
    lanes[lane] = (lanes[lane] ^ bits) * kPrime;
    lanes[lane] ^= lanes[lane] >> 29;
  };
  const auto sample = [counts](std::size_t i, int64_t j) { return j * (counts[i] - 1) / (kSamples - 1); };
  // The samples lie far apart: they are fetched side by side, while the vectors are hashed.
  for (std::size_t i = 0; i < n; i++) {
    if (counts[i] <= kWhole) continue;
    for (int64_t j = 0; j < kSamples; j++) __builtin_prefetch(reinterpret_cast<float*>(pointers[i]) + sample(i, j));
  }
  for (std::size_t i = 0; i < n; i++) {
    const auto* floats = reinterpret_cast<const unsigned char*>(pointers[i]);
    const auto word = [floats](int64_t at, std::size_t bytes) {
      uint64_t bits = 0;
      std::memcpy(&bits, floats + 4 * at, bytes);
      return bits;
    };
    mix(0, static_cast<uint64_t>(counts[i]));
    int64_t j = 0;
    if (counts[i] > kWhole) {
      for (; j < kSamples; j++) mix(j % 4, word(sample(i, j), 4));
      continue;
    }
    for (; j + 8 <= counts[i]; j += 8) {
      for (int64_t lane = 0; lane < 4; lane++) mix(lane, word(j + 2 * lane, 8));
    }
    for (; j < counts[i]; j++) mix(j % 4, word(j, 4));
  }
  for (int lane = 1; lane < 4; lane++) mix(0, lanes[lane]);
  return lanes[0];
}

void mnv3_fast_prefer_huge_pages(void* data, std::size_t bytes) { mnv3_fast::prefer_huge_pages(data, bytes); }
