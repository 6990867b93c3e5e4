#include "isa.h"

#include <atomic>
#include <cstring>

namespace mnv3_fast {
namespace {

constexpr const char* kSetNames[kInstructionSets] = {"baseline", "avx2", "avx512", "neon"};
constexpr const char* kOpNames[kOps] = {"fold_batch_norm",     "stem_conv",      "pointwise_conv",   "depthwise_conv",
                                        "squeeze_excite_gate", "squeeze_excite", "inverted_residual"};

InstructionSet best() {
  if (is_available(InstructionSet::kNeon)) return InstructionSet::kNeon;
  if (is_available(InstructionSet::kAvx512)) return InstructionSet::kAvx512;
  return is_available(InstructionSet::kAvx2) ? InstructionSet::kAvx2 : InstructionSet::kBaseline;
}

std::atomic<InstructionSet>& chosen() {
  static std::atomic<InstructionSet> set{best()};
  return set;
}

std::atomic<int> ran[kOps];  // 0: not since it was asked for, else 1 + the instruction set

}  // namespace

const char* name_of(InstructionSet set) { return kSetNames[static_cast<int>(set)]; }
const char* name_of(Op op) { return kOpNames[op]; }

bool is_available(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (set == InstructionSet::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           is_available(InstructionSet::kAvx2);
  }
#elif defined(__aarch64__)
  return set == InstructionSet::kNeon;  // every such CPU has it, so nothing else is built
#endif
  return set == InstructionSet::kBaseline;
}

InstructionSet instruction_set() { return chosen().load(std::memory_order_relaxed); }

void set_instruction_set(InstructionSet set) { chosen().store(set, std::memory_order_relaxed); }

void record_variant(Op op, InstructionSet set) { ran[op].store(1 + static_cast<int>(set), std::memory_order_relaxed); }

const char* take_variant(const char* op) {
  for (int i = 0; i < kOps; i++) {
    if (std::strcmp(kOpNames[i], op) != 0) continue;
    const int value = ran[i].exchange(0, std::memory_order_relaxed);
    return value ? kSetNames[value - 1] : "";
  }
  return nullptr;
}

}  // namespace mnv3_fast
