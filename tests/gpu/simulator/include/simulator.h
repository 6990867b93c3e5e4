// Runs CUDA kernels on the host: a fiber for each thread of a block, one block at a time. Threads run one after another
// in the order of their lanes or in the reverse, each until it waits for others or ends; a kernel without races
// computes the same in both. Shared memory is as large as the launch says and full of NaN when a block starts.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simulator {

extern bool reversed;  // the order of threads and of blocks
extern dim3 grid, block;
extern uint3 block_index, thread_index;         // of the thread that runs
extern std::map<const void*, int> most_shared;  // bytes that a kernel was allowed, by its function

void launch(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread);
void* dynamic_shared();
void wait_for_block();
void wait_for_warp(unsigned mask);
// What a lane of the same warp gives: every lane of the mask passes its own value.
uint64_t exchange(unsigned mask, uint64_t value, unsigned from);
unsigned lane();
// Every lane of a whole warp gives some bytes, and reads those of any until it gives or exchanges again.
void gather(const void* value, std::size_t size);
const void* gathered(unsigned from);
// 16 bytes, or zeros, copied when the thread waits for it and not before; until then NaN is there.
void copy_later(void* to, const void* from, bool inside);
void end_group_of_copies();
void finish_copies();
void finish_groups_of_copies(std::size_t latest);  // all but so many of the latest groups

template <class T>
T shuffle(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a register or two");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, from);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace simulator
