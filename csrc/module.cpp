// mnv3_fast._C: what Python may ask of the kernel library. No logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "api.h"
#include "staleness.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU features, instruction sets and checks of the mnv3_fast kernels.";
  m.def(
      "cpu_features",
      [] {
        std::vector<std::string> features;
        for (const char* const* name = mnv3_fast_cpu_features(); *name; name++) features.emplace_back(*name);
        return features;
      },
      "Names of the CPU's features that matter to the kernels.");
  m.def(
      "instruction_sets",
      [] {
        std::vector<std::string> sets;
        for (const char* const* name = mnv3_fast_instruction_sets(); *name; name++) sets.emplace_back(*name);
        return sets;
      },
      "Instruction sets that were built and run on this CPU, slowest first.");
  m.def("instruction_set", [] { return std::string(mnv3_fast_instruction_set()); }, "The instruction set in use.");
  m.def(
      "set_instruction_set",
      [](const std::string& name) {
        if (!mnv3_fast_set_instruction_set(name.c_str()))
          throw std::invalid_argument("instruction set not available: " + name);
      },
      py::arg("name"), "Use another instruction set from now on.");
  m.def(
      "take_variant",
      [](const std::string& op) -> std::string {
        const char* set = mnv3_fast_take_variant(op.c_str());
        if (!set) throw std::invalid_argument("no such op: " + op);
        return set;
      },
      py::arg("op"), "The instruction set of the code that ran last for an op, '' if none has since this was asked.");
  m.def("fma_peak", &mnv3_fast_fma_peak, py::arg("seconds") = 0.2, py::call_guard<py::gil_scoped_release>(),
        "Multiply-adds a second of one core with the instruction set in use, in 1e9: the best of `seconds` of trying.");
  m.def(
      "last_run",
      [] {
        double seconds = 0;
        const int64_t runs = mnv3_fast_last_run(&seconds);
        return std::make_pair(runs, seconds);
      },
      "How many plans this thread has run, and the seconds that the kernels of the last one took, without the call.");
  m.def("arena_bytes", &mnv3_fast_arena_bytes, "Scratch memory that this thread keeps for the plans it runs.");
  m.def("time_layers", &mnv3_fast_time_layers, py::arg("on"),
        "Whether plans that this thread runs from now on time each of their layers.");
  m.def(
      "layer_times",
      [] {
        const int64_t* nanoseconds = nullptr;
        const int64_t count = mnv3_fast_layer_times(&nanoseconds);
        std::vector<double> seconds;
        for (int64_t i = 0; i < count; i++) seconds.push_back(static_cast<double>(nanoseconds[i]) * 1e-9);
        return seconds;
      },
      "Seconds of each layer of the last plan that this thread ran, if it was timed; a pool right behind a 1x1 "
      "convolution is in that one's.");
  m.def(
      "tile",
      [] {
        int64_t pixels = 0, channels = 0;
        mnv3_fast_tile(&pixels, &channels);
        return std::make_pair(pixels, channels);
      },
      "Pixels and channels whose sums a 1x1 convolution keeps in registers with the instruction set in use.");
  m.def(
      "prefer_huge_pages",
      [](std::uintptr_t data, std::size_t bytes) { mnv3_fast_prefer_huge_pages(reinterpret_cast<void*>(data), bytes); },
      py::arg("data"), py::arg("bytes"), "Ask the system for large pages in a range of memory of this process.");
  bind_staleness(m);
}
