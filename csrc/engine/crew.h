// The threads that run a plan together: one parallel region a pass, in which they meet at a barrier behind each layer.
// A region for each layer would cost some microseconds each time.
#pragma once
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>

#include "torch_shim.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mnv3_fast {

// Threads that are members of crews now, in the whole process, and processors that it may use.
inline std::atomic<int>& working_threads() {
  static std::atomic<int> count{0};
  return count;
}
inline int processors() {
  cpu_set_t set;
  static const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return count;
}

// Waits for what another thread is about to do. It gives up its processor late, as it may be long before it gets it
// back, unless the other one must be waiting for a processor.
template <class Condition>
void wait_until(const Condition& met) {
  const int spins = working_threads().load(std::memory_order_relaxed) > processors() ? 500 : 200000;
  for (int i = 0; !met(); i++) {
    if (i > spins) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

class Crew {
 public:
  // `tasks` are handed out to threads by somebody else, perhaps several to one thread, perhaps all to one.
  explicit Crew(int64_t tasks) : tasks_(static_cast<uint64_t>(tasks)) {}
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // A thread that was handed `tasks` joins and waits until all tasks have come, but not for long: a thread that is late
  // is left behind. Returns the thread's place among the members, or -1.
  int join(int64_t tasks) {
    uint64_t state = state_.load();
    do {
      if (state & kClosed) return -1;
    } while (!state_.compare_exchange_weak(state, closed_if_full(state + static_cast<uint64_t>(tasks) * kTask + 1)));
    const int place = static_cast<int>(state % kTask);
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(300);
    wait_until([&] {
      if (state_.load(std::memory_order_acquire) & kClosed) return true;
      if (place == 0 && std::chrono::steady_clock::now() > end) state_.fetch_or(kClosed);
      return false;
    });
    return place;
  }
  // How many threads take part; known to those that have joined.
  int members() const { return static_cast<int>(state_.load() % kTask); }

  // Returns when all members have come.
  void barrier() {
    const int members = this->members();
    const uint32_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
    } else {
      wait_until([&] { return turn_.load(std::memory_order_acquire) != turn; });
    }
  }

 private:
  static constexpr uint64_t kTask = uint64_t{1} << 20, kClosed = uint64_t{1} << 63;
  uint64_t closed_if_full(uint64_t state) const { return state / kTask == tasks_ ? state | kClosed : state; }

  const uint64_t tasks_;
  std::atomic<uint64_t> state_{0};  // members, tasks, closed
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> turn_{0};
};

// f(crew, place) on each member of a crew of up to `threads` of torch's threads, also one alone inside of another
// parallel region. f must not throw: the others would wait for it.
template <class F>
void run_crew(int threads, const F& f) {
  struct Call {
    const F& f;
    Crew crew;
  } call{f, Crew(threads)};
  const auto run = [](int64_t begin, int64_t end, void* context) noexcept {
    Call& c = *static_cast<Call*>(context);
    working_threads()++;
    const int place = c.crew.join(end - begin);
    if (place >= 0) c.f(c.crew, place);
    working_threads()--;
  };
  if (threads == 1) run(0, 1, &call);
  else if (torch_parallel_for(0, threads, 1, run, &call) != 0)
    throw std::runtime_error("mnv3_fast: torch_parallel_for failed");
}

}  // namespace mnv3_fast
