#include "cuda/api.h"

#include <cuda_runtime.h>

const char* mnv3_cuda_error(int32_t status) {
  return status == mnv3_fast::cuda::kUnknown ? "there is no kernel for these arguments"
                                             : cudaGetErrorString(static_cast<cudaError_t>(status));
}
