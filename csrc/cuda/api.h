// What the C functions of the library of CUDA kernels (mnv3_fast/_cuda.so) have in common. Each starts one kernel:
// int32_t mnv3_cuda_<kernel>(const structure*, void* stream), 0: it was started; kUnknown: there is none for these
// arguments; else an error of CUDA's. They know pointers, sizes and a stream, never torch.
#pragma once
#include <cstdint>

#define MNV3_EXPORT __attribute__((visibility("default")))

namespace mnv3_fast {
namespace cuda {

constexpr int32_t kUnknown = -1;

}  // namespace cuda
}  // namespace mnv3_fast

// What such a status means, in CUDA's words.
extern "C" MNV3_EXPORT const char* mnv3_cuda_error(int32_t status);
