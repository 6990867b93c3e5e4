// Instruction sets: which were built, which run here, which is in use, and which one's code ran last for each op.
#pragma once

namespace mnv3_fast {

enum class InstructionSet : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kNeon = 3 };
constexpr int kInstructionSets = 4;

enum Op : int {
  kFoldBatchNorm,
  kStemConv,
  kPointwiseConv,
  kDepthwiseConv,
  kSqueezeExciteGate,
  kSqueezeExcite,
  kInvertedResidual,
  kOps
};

const char* name_of(InstructionSet set);
const char* name_of(Op op);
bool is_available(InstructionSet set);
InstructionSet instruction_set();
void set_instruction_set(InstructionSet set);

// Kernel code says which op it is and which instruction set it was compiled for; tests read it.
void record_variant(Op op, InstructionSet set);
// "" if the op has not run since the last call.
const char* take_variant(const char* op);

#if defined(MNV3_ISA_AVX512)
constexpr InstructionSet kThisIsa = InstructionSet::kAvx512;
#elif defined(MNV3_ISA_AVX2)
constexpr InstructionSet kThisIsa = InstructionSet::kAvx2;
#elif defined(MNV3_ISA_NEON)
constexpr InstructionSet kThisIsa = InstructionSet::kNeon;
#else
constexpr InstructionSet kThisIsa = InstructionSet::kBaseline;
#endif

}  // namespace mnv3_fast
