// The C function of the library of CUDA kernels for depthwise convolution: what there is a kernel for, and which.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "ops/depthwise_conv/tile.h"

using namespace mnv3_fast::cuda;

int32_t mnv3_cuda_depthwise_conv(const Arguments* arguments, void* stream) {
  const Arguments& of = *arguments;
  if (!is_known(of)) return kUnknown;
  if (of.dtype == 0) return depthwise_conv<float>(of, stream);
  return of.dtype == 1 ? depthwise_conv<__half>(of, stream) : depthwise_conv<__nv_bfloat16>(of, stream);
}
