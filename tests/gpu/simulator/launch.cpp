// Reads one launch of a CUDA kernel from standard input, runs it in both orders of threads in memory of exactly the
// tensors' sizes, and writes what came of it: status, bytes that differ, tensors that were written. SYMBOL is the
// kernel's function (csrc/cuda/api.h); the input is as tests/gpu/simulator/run.py writes it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "simulator.h"

extern "C" int32_t SYMBOL(const void* structure, void* stream);

namespace {

struct Pointer {
  int64_t field;         // bytes from the start of the structure
  int64_t size, behind;  // bytes of the tensor, and bytes by which it starts behind an address of 16 bytes
  int64_t written;       // whole: 1; in part or not before it is read, so that it starts as it is given: 2
};

struct Memory {
  explicit Memory(const Pointer& of) : all(new char[of.size + of.behind]), start(all.get() + of.behind) {}
  std::unique_ptr<char[]> all;
  char* start;
};

template <class T>
T read() {
  T value;
  if (std::fread(&value, sizeof(value), 1, stdin) != 1) std::exit(2);
  return value;
}

void read(char* to, int64_t size) {
  if (std::fread(to, 1, size, stdin) != static_cast<std::size_t>(size)) std::exit(2);
}

}  // namespace

int main() {
  const auto size = read<int64_t>(), count = read<int64_t>();
  std::vector<char> structure(size);
  read(structure.data(), size);
  std::vector<Pointer> pointers(count);
  for (Pointer& pointer : pointers) pointer = read<Pointer>();
  std::vector<Memory> given, first, second;
  for (const Pointer& pointer : pointers) {
    for (auto* to : {&given, &first, &second}) to->emplace_back(pointer);
    read(given.back().start, pointer.size);
  }
  int64_t status = 0, differ = 0;
  for (std::vector<Memory>* to : {&first, &second}) {
    simulator::reversed = to == &second;
    for (int64_t i = 0; i < count; i++) {
      const Pointer& pointer = pointers[i];
      char* start = (pointer.written ? *to : given)[i].start;
      // What a kernel ought to write and does not differs between the runs.
      if (pointer.written == 1) std::memset(start, simulator::reversed ? 0x5a : 0xff, pointer.size);
      if (pointer.written == 2) std::memcpy(start, given[i].start, pointer.size);
      std::memcpy(structure.data() + pointer.field, &start, sizeof(start));
    }
    if (status == 0) status = SYMBOL(structure.data(), nullptr);
  }
  for (int64_t i = 0; i < count; i++)
    for (int64_t b = 0; pointers[i].written && b < pointers[i].size; b++)
      differ += first[i].start[b] != second[i].start[b];
  const int64_t words[] = {status, differ};
  std::fwrite(words, sizeof(words), 1, stdout);
  for (int64_t i = 0; i < count; i++)
    if (pointers[i].written) std::fwrite(first[i].start, 1, pointers[i].size, stdout);
}
