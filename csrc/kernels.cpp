// The tables of kernels, one for each instruction set that was built.
#include "kernels.h"

namespace mnv3_fast {

MNV3_DECLARE_KERNELS(baseline)
#if defined(__x86_64__)
MNV3_DECLARE_KERNELS(avx2)
MNV3_DECLARE_KERNELS(avx512)
#endif

#define MNV3_BASELINE(name, Args) baseline::name,
#define MNV3_AVX2(name, Args) avx2::name,
#define MNV3_AVX512(name, Args) avx512::name,

const Kernels& kernels() {
  static const Kernels tables[] = {{MNV3_KERNELS(MNV3_BASELINE)},
#if defined(__x86_64__)
                                   {MNV3_KERNELS(MNV3_AVX2)},
                                   {MNV3_KERNELS(MNV3_AVX512)}
#endif
  };
  return tables[static_cast<int>(instruction_set())];
}

}  // namespace mnv3_fast
