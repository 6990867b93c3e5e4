// Torch's own thread pool. A pool of ours beside it would fight for the cores (docs/decisions.md).
#pragma once
#include <exception>
#include <mutex>
#include <stdexcept>

#include "torch_shim.h"

namespace mnv3_fast {

inline int thread_count() {
  uint32_t threads = 1;
  return torch_get_num_threads(&threads) == 0 && threads > 0 ? static_cast<int>(threads) : 1;
}

// f(i) for each i of [0, n), spread over threads. Right whichever way the range is handed out, also whole to the
// calling thread inside of another parallel region. The first exception is thrown again after all have ended.
template <class F>
void parallel_for(int64_t n, const F& f) {
  struct Call {
    const F& f;
    std::mutex mutex;
    std::exception_ptr error;
  } call{f, {}, nullptr};
  const auto run = [](int64_t begin, int64_t end, void* context) {
    Call& c = *static_cast<Call*>(context);
    try {
      for (int64_t i = begin; i < end; i++) c.f(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(c.mutex);
      if (!c.error) c.error = std::current_exception();
    }
  };
  if (n == 1) run(0, 1, &call);
  else if (torch_parallel_for(0, n, 1, run, &call) != 0)
    throw std::runtime_error("mnv3_fast: torch_parallel_for failed");
  if (call.error) std::rethrow_exception(call.error);
}

}  // namespace mnv3_fast
