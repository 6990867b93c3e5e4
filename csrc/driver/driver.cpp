// mnv3_fast_driver FILE [TEXT]: the cases of a file (those whose name contains TEXT) through the bindings, the engine
// and the kernels of each instruction set of this CPU, without torch: each on one thread, then on three, which must
// give the same bits. For CPUs that are only emulated, and for a debugger.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>

#include "api.h"
#include "driver/cases.h"
#include "isa.h"

namespace mnv3_fast {
namespace {

using Outputs = std::vector<std::unique_ptr<AtenTensorOpaque>>;

// A kernel owns its arguments, so each call gets tensors of its own.
StableIValue boxed(const Argument& a) {
  const auto handle = [&](std::size_t i) {
    return reinterpret_cast<StableIValue>(new AtenTensorOpaque(*a.tensors[i]));
  };
  std::vector<StableIValue> items;
  StableIValue value = static_cast<StableIValue>(a.integer);
  switch (a.kind) {
    case 'T': return handle(0);
    case 't': return a.tensors.empty() ? 0 : reinterpret_cast<StableIValue>(new StableIValue(handle(0)));
    case 'f': std::memcpy(&value, &a.real, sizeof value); return value;
    case 'L':
      for (std::size_t i = 0; i < a.tensors.size(); i++) items.push_back(handle(i));
      return reinterpret_cast<StableIValue>(new_list(items));
    case 'I':
      for (const int64_t i : a.integers) items.push_back(static_cast<StableIValue>(i));
      return reinterpret_cast<StableIValue>(new_list(items));
    default: return value;
  }
}

std::vector<StableIValue> call(const Case& c, int threads) {
  const BoxedKernel kernel = find_kernel(c.op);
  if (!kernel) throw std::runtime_error("there is no such kernel");
  set_threads(threads);
  std::vector<StableIValue> stack;
  for (const Argument& a : c.arguments) stack.push_back(boxed(a));
  if (stack.size() < 2) stack.resize(2);
  kernel(stack.data(), c.arguments.size(), c.outputs.size());
  return stack;
}

Outputs tensors_of(const std::vector<StableIValue>& stack, const Case& c) {
  Outputs outputs;
  for (std::size_t i = 0; i < c.outputs.size(); i++) outputs.emplace_back(reinterpret_cast<AtenTensorHandle>(stack[i]));
  return outputs;
}

// The values of a float tensor, dense in the order of its dimensions.
std::vector<float> values_of(const AtenTensorOpaque& t) {
  std::vector<float> values;
  std::vector<int64_t> index(t.sizes.size(), 0);
  for (int64_t n = t.numel(); n > 0; n--) {
    int64_t at = 0;
    for (std::size_t d = 0; d < index.size(); d++) at += index[d] * t.strides[d];
    values.push_back(static_cast<const float*>(t.data)[at]);
    for (std::size_t d = index.size(); d-- > 0 && ++index[d] == t.sizes[d];) index[d] = 0;
  }
  return values;
}

std::string number(double value) {
  char characters[32];
  std::snprintf(characters, sizeof characters, "%.3g", value);
  return characters;
}

// What is wrong with an output by the rule of mnv3_fast/testing/tolerance.py, or "".
std::string compare(const AtenTensorOpaque& output, const Expected& e) {
  if (output.sizes != e.sizes) return "another shape";
  if (!output.margins_intact()) return "writes outside of its output";
  const std::vector<float> ours = values_of(output);
  double difference = 0, norm = 0, largest_difference = 0, largest = 0;
  for (std::size_t i = 0; i < ours.size(); i++) {
    if (std::isnan(ours[i]) != std::isnan(e.theirs[i])) return "NaN in other places than torch has them";
    if ((std::isinf(ours[i]) || std::isinf(e.theirs[i])) && ours[i] != e.theirs[i] && !std::isnan(ours[i]))
      return "infinite values in other places than torch has them";
    if (!std::isfinite(e.theirs[i]) || !std::isfinite(e.exact[i])) continue;
    const double d = double(ours[i]) - e.exact[i];
    difference += d * d;
    norm += e.exact[i] * e.exact[i];
    largest_difference = std::fmax(largest_difference, std::fabs(d));
    largest = std::fmax(largest, std::fabs(e.exact[i]));
  }
  const double relative = std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1);
  const double worst = largest_difference / (largest > 0 ? largest : 1);
  if (!(relative <= e.relative_limit))
    return "relative_error " + number(relative) + ", limit " + number(e.relative_limit);
  if (!(worst <= e.max_limit)) return "max_error " + number(worst) + ", limit " + number(e.max_limit);
  return "";
}

// Which instruction set's code has run since the last call must be the one that was asked for.
std::string wrong_variant(const std::string& instruction_set) {
  std::string wrong;
  bool any = false;
  for (int i = 0; i < kOps; i++) {
    const char* op = name_of(static_cast<Op>(i));
    const std::string ran = take_variant(op);
    any |= !ran.empty();
    if (!ran.empty() && ran != instruction_set) wrong = std::string(op) + " ran on " + ran;
  }
  return any ? wrong : "no kernel has run";
}

std::string check_tensors(const Case& c, const std::string& instruction_set) {
  wrong_variant("");
  const Outputs outputs = tensors_of(call(c, 1), c);
  bool empty = true;
  for (std::size_t i = 0; i < outputs.size(); i++) {
    const std::string wrong = compare(*outputs[i], c.outputs[i]);
    if (!wrong.empty()) return "output " + std::to_string(i) + ": " + wrong;
    empty &= outputs[i]->numel() == 0;
  }
  const std::string wrong = wrong_variant(instruction_set);
  if (!empty && !wrong.empty()) return wrong;
  const Outputs again = tensors_of(call(c, 3), c);
  for (std::size_t i = 0; i < outputs.size(); i++)
    if (again[i]->memory != outputs[i]->memory) return "another result on three threads";
  return "";
}

// What is wrong with a case, or "".
std::string check(const Case& c, const std::string& instruction_set) {
  const int64_t before = live_tensors();
  std::string wrong;
  try {
    if (c.is_integer) wrong = static_cast<int64_t>(call(c, 1)[0]) == c.integer ? "" : "another number";
    else wrong = check_tensors(c, instruction_set);
  } catch (const std::exception& error) { wrong = error.what(); }
  if (c.planted) return wrong.empty() ? "the planted fault was not found" : "";
  return wrong.empty() && live_tensors() != before ? "a tensor was not freed" : wrong;
}

int run(const char* path, const std::string& wanted) {
  CaseFile file(path);
  int passed = 0, failed = 0;
  std::map<std::string, int> by_op;
  for (int64_t i = 0; i < file.count(); i++) {
    const Case c = file.next();
    if (c.name.find(wanted) == std::string::npos) continue;
    for (const char* const* set = mnv3_fast_instruction_sets(); *set; set++) {
      mnv3_fast_set_instruction_set(*set);
      const std::string wrong = check(c, *set);
      if (!wrong.empty()) std::printf("FAILED %s [%s]: %s\n", c.name.c_str(), *set, wrong.c_str());
      (wrong.empty() ? passed : failed)++;
      by_op[std::string(*set) + " " + c.name.substr(0, c.name.find(' '))]++;
    }
    std::fflush(stdout);
  }
  for (const auto& [op, count] : by_op) std::printf("%s: %d run\n", op.c_str(), count);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed ? 1 : 0;
}

}  // namespace
}  // namespace mnv3_fast

int main(int count, char** values) {
  if (count < 2 || count > 3) {
    std::fprintf(stderr, "usage: mnv3_fast_driver FILE [TEXT]\n");
    return 2;
  }
  try {
    return mnv3_fast::run(values[1], count > 2 ? values[2] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
