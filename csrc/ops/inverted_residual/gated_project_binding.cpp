// The C function of gated_project: what there is a kernel for, and which.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/inverted_residual/gated_project_tile.h"

using namespace mnv3_fast::cuda;

int32_t mnv3_cuda_gated_project(const GatedProject* arguments, void* stream) {
  const GatedProject& of = *arguments;
  if (!is_known(of)) return kUnknown;
  return of.dtype == 1 ? gated_project<__half>(of, stream) : gated_project<__nv_bfloat16>(of, stream);
}
