// Copies of 16 bytes from global to shared memory that go on while the thread does other things (PTX ISA, cp.async).
// Those that threads started are there for a thread that waited for its own, behind a barrier for the whole block.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace mnv3_fast {
namespace cuda {

// Zeros where not inside, from where nothing is read. Both addresses are multiples of 16 bytes.
__device__ inline void copy_later(void* to, const void* from, bool inside) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
#else
  simulator::copy_later(to, from, inside);
#endif
}

// What was started since the last call is a group.
__device__ inline void end_group_of_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" : : : "memory");
#else
  simulator::end_group_of_copies();
#endif
}

// For all groups but the latest ones.
template <int kLatest>
__device__ inline void wait_for_groups_of_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" : : "n"(kLatest) : "memory");
#else
  simulator::finish_groups_of_copies(kLatest);
#endif
}

__device__ inline void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_all;" : : : "memory");
#else
  simulator::finish_copies();
#endif
}

}  // namespace cuda
}  // namespace mnv3_fast
