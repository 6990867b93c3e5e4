#include "simulator.h"

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace simulator {

bool reversed = false;
dim3 grid, block;
uint3 block_index, thread_index;

namespace {

constexpr std::size_t kStack = 256 << 10;  // AddressSanitizer's frames are large

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* shadow = nullptr;  // what AddressSanitizer keeps of a stack that is switched away from
  State state = State::kDone;
  unsigned mask = 0;
  uint3 index;
  uint64_t values[2];  // given to the warp, in turn: one lane may be an exchange ahead of another
  unsigned exchanges = 0;
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
  fiber.index = {number % block.x, number / block.x % block.y, number / (block.x * block.y)};
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

void run_block() {
  for (std::size_t i = 0; i < threads; i++) prepare(static_cast<unsigned>(i));
  for (;;) {
    for (std::size_t i = 0; i < threads; i++) {
      const std::size_t which = reversed ? threads - 1 - i : i;
      if (fibers[which].state == State::kReady) run(which);
    }
    bool released = false;
    for (std::size_t first = 0; first < threads; first += 32) released |= release_warp(first);
    if (released) continue;
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

uint64_t exchange(unsigned mask, uint64_t value, unsigned from) {
  Fiber& fiber = fibers[current];
  const unsigned turn = fiber.exchanges++ % 2;
  const std::size_t source = current - lane() + from;
  fiber.values[turn] = value;
  wait_for_warp(mask);
  if (source >= threads) fail("a shuffle reads a lane that does not exist");
  return fibers[source].values[turn];
}

}  // namespace simulator
