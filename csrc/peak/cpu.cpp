// What the FMA units of a core can do: independent multiply-adds in registers, nothing else. The yardstick of every
// "% of peak" in the benchmarks.
#include "kernels.h"
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {

void fma_peak(const FmaPeak& a) {
  constexpr int kChains = 12;  // latency times throughput, and fits in 16 registers
  Vec<kLanes> sum[kChains];
  MNV3_UNROLL for (int j = 0; j < kChains; j++) sum[j] = broadcast<kLanes>(1.0f);
  Vec<kLanes> x = broadcast<kLanes>(0.999f), y = broadcast<kLanes>(0.001f);
  MNV3_PIN(x);
  MNV3_PIN(y);
  for (int64_t i = 0; i < a.iterations; i++) {
    MNV3_UNROLL for (int j = 0; j < kChains; j++) {
      sum[j] = sum[j] * x + y;
      MNV3_PIN(sum[j]);
    }
  }
  *a.macs = a.iterations * kChains * kLanes;
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
