// The C function of inverted residual blocks: what there is a kernel for, and which.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/inverted_residual/tile.h"

using namespace mnv3_fast::cuda;

int32_t mnv3_cuda_inverted_residual(const InvertedResidual* arguments, void* stream) {
  const InvertedResidual& of = *arguments;
  if (!is_known(of)) return kUnknown;
  return of.dtype == 1 ? inverted_residual<__half>(of, stream) : inverted_residual<__nv_bfloat16>(of, stream);
}
