// One fully connected layer of squeeze-excite over [images][channels]: the 1x1 conv kernel with the gate as activation.
// A layer reads each weight once, so it is bound by the bandwidth of L2 or L3.
// See mnv3_fast/ops/squeeze_excite_gate/README.md.
#include "kernels.h"
#include "simd/vector.h"

// libm's function, declared here: <cmath> would bring inline bodies.
extern "C" float expf(float);

namespace mnv3_fast {
namespace MNV3_ISA {

void squeeze_excite_layer(const Pointwise& a) {
  record_variant(kSqueezeExciteGate, kThisIsa);
  if (a.activation != kSigmoid) return pointwise(a);
  Pointwise linear = a;
  linear.activation = kNone;
  pointwise(linear);
  const int64_t end = a.panel_end * kPanel < a.outputs ? a.panel_end * kPanel : a.outputs;
  for (int64_t n = 0; n < a.pixels; n++) {
    float* row = a.output + n * a.output_stride;
    for (int64_t c = a.panel_begin * kPanel; c < end; c++) row[c] = 1 / (1 + expf(-row[c]));
  }
}

}  // namespace MNV3_ISA
}  // namespace mnv3_fast
