// float16 on the host, by its bits (IEEE 754 binary16, round to nearest, ties to even).
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half value) {
  const uint32_t sign = uint32_t{value.bits} >> 15 << 31, exponent = value.bits >> 10 & 31, rest = value.bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | rest << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(rest), -24);
  return __uint_as_float(sign | (exponent + 112) << 23 | rest << 13);
}

inline __half __float2half_rn(float value) {
  const uint32_t bits = __float_as_uint(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float size = std::fabs(value);
  if (std::isnan(value)) return {0x7fff};
  if (size >= 65520) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(size, &exponent);                    // size in [2^(exponent - 1), 2^exponent)
  const int unit = std::max(exponent - 11, -24);  // of the last place
  const float scaled = std::nearbyint(std::ldexp(size, -unit));
  const auto places = static_cast<uint32_t>(scaled);  // up to 2048, which carries into the exponent
  const uint32_t field = places < 1024 ? places : ((unit + 24) << 10) + places;
  return {static_cast<uint16_t>(sign | field)};
}

inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
