#include "api.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels.h"
#include "pages.h"

namespace {

using mnv3_fast::InstructionSet;

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
#elif defined(__aarch64__)
    n.add("neon");
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

void mnv3_fast_tile(int64_t* pixels, int64_t* channels) { mnv3_fast::kernels().pointwise_tile({pixels, channels}); }

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

void mnv3_fast_prefer_huge_pages(void* data, std::size_t bytes) { mnv3_fast::prefer_huge_pages(data, bytes); }
