// A hash of the values of arrays, quick enough for every call of a module.
#pragma once
#include <cstdint>
#include <vector>

namespace mnv3_fast {

struct Array {
  const float* data;
  int64_t count;
};

// Every value of arrays of up to 4096 floats (every BatchNorm vector), 64 evenly spread ones of larger ones.
uint64_t fingerprint(const std::vector<Array>& arrays);

}  // namespace mnv3_fast
