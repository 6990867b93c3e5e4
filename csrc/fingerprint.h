// A hash of the values of arrays, quick enough for every call of a module.
#pragma once
#include <cstdint>
#include <vector>

namespace mnv3_fast {

struct Array {
  const float* data;
  int64_t count;
};

// Up to this length every value counts (every BatchNorm vector), of larger arrays 64 evenly spread ones.
constexpr int64_t kWhole = 4096;
uint64_t fingerprint(const std::vector<Array>& arrays);

}  // namespace mnv3_fast
