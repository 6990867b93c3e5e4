// The tables of kernels, one for each instruction set that was built (CMakeLists.txt).
#include "kernels.h"

namespace mnv3_fast {

#if defined(__aarch64__)
MNV3_DECLARE_KERNELS(neon)
#else
MNV3_DECLARE_KERNELS(baseline)
#endif
#if defined(__x86_64__)
MNV3_DECLARE_KERNELS(avx2)
MNV3_DECLARE_KERNELS(avx512)
#endif

#define MNV3_BASELINE(name, Args) baseline::name,
#define MNV3_AVX2(name, Args) avx2::name,
#define MNV3_AVX512(name, Args) avx512::name,
#define MNV3_NEON(name, Args) neon::name,

const Kernels& kernels() {
#if defined(__aarch64__)
  static const Kernels table = {MNV3_KERNELS(MNV3_NEON)};
  return table;
#else
  static const Kernels tables[] = {{MNV3_KERNELS(MNV3_BASELINE)},
#if defined(__x86_64__)
                                   {MNV3_KERNELS(MNV3_AVX2)},
                                   {MNV3_KERNELS(MNV3_AVX512)}
#endif
  };
  return tables[static_cast<int>(instruction_set())];
#endif
}

}  // namespace mnv3_fast
