#include "simulator.h"

#include <sanitizer/asan_interface.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

namespace simulator {

bool reversed = false;
dim3 grid, block;
uint3 block_index, thread_index;
std::map<const void*, int> most_shared;

namespace {

constexpr std::size_t kStack = 256 << 10;  // AddressSanitizer's frames are large
constexpr std::size_t kGiven = 64;         // bytes that a lane gives its warp at a time

struct Copy {
  void* to;
  const void* from;  // null: zeros
};

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* shadow = nullptr;  // what AddressSanitizer keeps of a stack that is switched away from
  State state = State::kDone;
  unsigned mask = 0;
  uint3 index;
  alignas(16) char given[2][kGiven];  // to the warp, in turn: one lane may be an exchange ahead of another
  unsigned exchanges = 0;
  std::deque<std::vector<Copy>> copies;  // by group; the last one is not at an end
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
const void* scheduler_stack;
std::size_t scheduler_size;
std::size_t current, threads;
const std::function<void()>* body;
std::unique_ptr<char[]> shared;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "simulator: %s, block %u %u %u\n", what, block_index.x, block_index.y, block_index.z);
  std::exit(3);
}

void enter() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
  (*body)();
  fibers[current].state = State::kDone;
  __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_size);
  swapcontext(&fibers[current].context, &scheduler);
}

void run(std::size_t which) {
  current = which;
  thread_index = fibers[which].index;
  void* shadow;
  __sanitizer_start_switch_fiber(&shadow, fibers[which].stack.get(), kStack);
  swapcontext(&scheduler, &fibers[which].context);
  __sanitizer_finish_switch_fiber(shadow, nullptr, nullptr);
}

void wait(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  __sanitizer_start_switch_fiber(&fiber.shadow, scheduler_stack, scheduler_size);
  swapcontext(&fiber.context, &scheduler);
  __sanitizer_finish_switch_fiber(fiber.shadow, &scheduler_stack, &scheduler_size);
}

// The warp that starts at a thread goes on if all lanes that its waiting lanes ask for are waiting.
bool release_warp(std::size_t first) {
  unsigned waiting = 0, wanted = 0;
  const std::size_t last = std::min(first + 32, threads);
  for (std::size_t i = first; i < last; i++)
    if (fibers[i].state == State::kAtWarp) waiting |= 1u << (i - first), wanted |= fibers[i].mask;
  const unsigned existing = last - first == 32 ? ~0u : (1u << (last - first)) - 1;
  if (!waiting || (wanted & existing & ~waiting)) return false;
  for (std::size_t i = first; i < last; i++)
    if (fibers[i].state == State::kAtWarp) fibers[i].state = State::kReady;
  return true;
}

void prepare(unsigned number) {
  Fiber& fiber = fibers[number];
  fiber.state = State::kReady;
  fiber.exchanges = 0;
  fiber.copies.assign(1, {});
  fiber.index = {number % block.x, number / block.x % block.y, number / (block.x * block.y)};
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
  // What the last block left on the stack is cleared here once; else AddressSanitizer clears it at every switch.
  __asan_unpoison_memory_region(fiber.stack.get(), kStack);
  fiber.context.uc_stack.ss_size = 0;
}

// A warp goes as far as it can before another starts, so that nothing but a barrier of the block makes one wait.
void run_warp(std::size_t first) {
  const std::size_t count = std::min<std::size_t>(32, threads - first);
  do {
    for (std::size_t i = 0; i < count; i++) {
      const std::size_t which = first + (reversed ? count - 1 - i : i);
      if (fibers[which].state == State::kReady) run(which);
    }
  } while (release_warp(first));
}

void run_block() {
  const std::size_t warps = (threads + 31) / 32;
  for (std::size_t i = 0; i < threads; i++) prepare(static_cast<unsigned>(i));
  for (;;) {
    for (std::size_t i = 0; i < warps; i++) run_warp((reversed ? warps - 1 - i : i) * 32);
    std::size_t done = 0, waiting = 0;
    for (std::size_t i = 0; i < threads; i++)
      done += fibers[i].state == State::kDone, waiting += fibers[i].state == State::kAtBlock;
    if (done == threads) return;
    if (waiting != threads) fail("threads wait for others that do not come (divergent barrier)");
    for (std::size_t i = 0; i < threads; i++) fibers[i].state = State::kReady;
  }
}

}  // namespace

void launch(dim3 of_grid, dim3 of_block, std::size_t shared_bytes, const std::function<void()>& thread) {
  grid = of_grid, block = of_block, body = &thread;
  threads = std::size_t{block.x} * block.y * block.z;
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; i++) {
    const uint64_t b = reversed ? blocks - 1 - i : i;
    block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                   static_cast<unsigned>(b / grid.x / grid.y)};
    shared.reset(new char[shared_bytes]);
    std::memset(shared.get(), 0xff, shared_bytes);
    run_block();
  }
  shared.reset();
}

void* dynamic_shared() { return shared.get(); }
void wait_for_block() { wait(State::kAtBlock); }

void wait_for_warp(unsigned mask) {
  fibers[current].mask = mask;
  wait(State::kAtWarp);
}

unsigned lane() { return current % 32; }

void gather(const void* value, std::size_t size) {
  Fiber& fiber = fibers[current];
  if (size > kGiven) fail("a lane gives more than there is room for");
  std::memcpy(fiber.given[fiber.exchanges++ % 2], value, size);
  wait_for_warp(0xffffffff);
}

const void* gathered(unsigned from) {
  const std::size_t source = current - lane() + from;
  if (source >= threads) fail("a warp's value of a lane that does not exist is read");
  return fibers[source].given[(fibers[current].exchanges - 1) % 2];
}

void copy_later(void* to, const void* from, bool inside) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
    fail("a copy's address is no multiple of 16");
  std::memset(to, 0xff, 16);  // it may be there at once: who still reads what was there before finds NaN
  fibers[current].copies.back().push_back({to, inside ? from : nullptr});
}

void end_group_of_copies() { fibers[current].copies.emplace_back(); }

void finish_groups_of_copies(std::size_t latest) {
  for (auto& groups = fibers[current].copies; groups.size() > latest + 1; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      constexpr char kZeros[16] = {};
      std::memcpy(copy.to, copy.from ? copy.from : kZeros, 16);
    }
}

void finish_copies() {
  end_group_of_copies();
  finish_groups_of_copies(0);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned from) {
  Fiber& fiber = fibers[current];
  std::memcpy(fiber.given[fiber.exchanges++ % 2], &value, sizeof(value));
  wait_for_warp(mask);
  std::memcpy(&value, gathered(from), sizeof(value));
  return value;
}

}  // namespace simulator
