// The layers of a plan on one image, spread over the threads of a team.
#pragma once
#include <algorithm>

#include "arena.h"
#include "engine/crew.h"
#include "engine/executor.h"

namespace mnv3_fast {

struct Shape {
  int64_t height, width, channels;
  int64_t pixels() const { return height * width; }
  int64_t floats() const { return height * width * channels; }
};

// Floats that a team needs: each of two maps, what blocks with squeeze-excite keep, the maps that wait for their group,
// and a thread's scratch.
struct Sizes {
  int64_t map = 0, hidden = 0, vector = 0, squeeze = 0, row_sums = 0, group = 0, scratch = 0;
};

struct Part {
  int64_t begin, end;
};
struct Weights {
  const float* data;
  int64_t floats;
};

// One of the threads that work on one image together; their part of the arena. All of them call the same functions in
// the same order, each does its share, and no one goes on before all have done theirs.
struct Team {
  int threads, place;
  Crew* crew;  // null for one thread
  mutable WeightStream stream;
  float *maps[2], *hidden, *means, *squeeze, *gate, *row_sums, *group, *scratch;
  int64_t scratch_floats;

  Team(const Sizes& s, Carver& carver, int team_threads = 1, int team_place = 0, Crew* team_crew = nullptr)
      : threads(team_threads), place(team_place), crew(team_crew), stream{nullptr, nullptr, false} {
    maps[0] = carver.take(s.map);
    maps[1] = carver.take(s.map);
    hidden = carver.take(s.hidden);
    means = carver.take(s.vector);
    squeeze = carver.take(s.squeeze);
    gate = carver.take(s.vector);
    row_sums = carver.take(s.row_sums);
    group = carver.take(s.group);
    scratch_floats = round_up(s.scratch, 16);
    scratch = carver.take(scratch_floats * threads);
    if (scratch) scratch += scratch_floats * place;
  }
  WeightStream* weights() const { return stream.end ? &stream : nullptr; }
  // One thread reads the weights of a plan in order.
  void stream_plan(const char* data, const char* end) const {
    stream = {data, end, true};
    if (threads > 1) stream = {nullptr, nullptr, false};
  }
  // Each of several threads fetches its own part of what comes next; for one it is in the stream of the plan.
  void fetch_meanwhile(Weights next) const {
    const char* data = reinterpret_cast<const char*>(next.data);
    if (threads > 1) stream = {data, data ? data + next.floats * 4 : nullptr, false};
  }
  // This thread's part of [0, n), which is shared out in at most `threads` parts, each a multiple of `unit` but for the
  // last.
  Part part(int64_t n, int64_t unit) const {
    const int64_t units = (n + unit - 1) / unit, parts = std::min<int64_t>(threads, units);
    if (place >= parts) return {0, 0};
    return {std::min(n, units * place / parts * unit), std::min(n, units * (place + 1) / parts * unit)};
  }
  // f(begin, end) of this thread's part.
  template <class F>
  void split(int64_t n, int64_t unit, const F& f) const {
    const Part mine = part(n, unit);
    if (mine.end > mine.begin) f(mine.begin, mine.end);
    wait();
  }
  // f() on one of the threads.
  template <class F>
  void once(const F& f) const {
    if (place == 0) f();
    wait();
  }
  void wait() const {
    if (threads > 1) crew->barrier();
  }
};

Block block_of(const BlockNode& b, Shape in, Shape out, const float* input, float* output, WeightStream* stream);

void run_linear(const LinearNode& l, int64_t images, const float* input, int64_t input_stride, float* output,
                int64_t output_stride, int activation, float slope, const Team& team);
// This thread's part of what a node reads first.
Weights first_weights(const Node& node, Shape out, const Team& team);
void run_pointwise(const LinearNode& l, int64_t pixels, const float* input, int64_t input_stride, const float* gate,
                   const float* residual, float* output, const Team& team);
// Of several images, one behind the other, on one thread, or of one image. `next` is what the threads read after it.
void run_block(const BlockNode& node, int64_t images, Shape in, Shape out, const float* input, float* output,
               Weights next, const Team& team);
void run_stem(const StemNode& node, const Batch& batch, int64_t image, Shape out, float* output, const Team& team);
void mean_of(const float* input, int64_t pixels, int64_t stride, int64_t channels, float* means);
void run_pooled(const LinearNode& l, int64_t images, int64_t pixels, const float* input, float* means,
                const Team& team);

}  // namespace mnv3_fast
