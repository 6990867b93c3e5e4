// Rows of a padded input that a strip-wise convolution still needs, in a ring: pixel p of a row is input pixel
// p - pad_left, the borders are zero, and rows above and below the map are one shared row of zeros.
#pragma once
#include "kernels.h"
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

MNV3_INLINE void clear(float* p, int64_t n) { __builtin_memset(p, 0, n * sizeof(float)); }

struct Ring {
  float *data, *zeros;
  int64_t rows, row_floats, pixel_floats;

  float* row(int64_t y) const { return data + static_cast<uint32_t>(y) % static_cast<uint32_t>(rows) * row_floats; }
  // The row that tap (row ky) of output row y reads; `height` rows exist.
  const float* tap(const Window& w, int64_t y, int64_t ky, int64_t height) const {
    const int64_t input_y = y * w.stride_h - w.pad_top + ky * w.dilation_h;
    return input_y < 0 || input_y >= height ? zeros : row(input_y);
  }
};

// Which input rows output row y reads for the first time: [max(next, lowest), highest + 1) within the map.
struct NewRows {
  int64_t begin, end;
};
MNV3_INLINE NewRows new_rows(const Window& w, int64_t y, int64_t height, int64_t next) {
  const int64_t lowest = y * w.stride_h - w.pad_top, end = lowest + w.rows();
  return {lowest > next ? lowest : next, end < height ? end : height};
}

// Pixels of `width` that fit between the borders of a ring row of `pixels` pixels.
MNV3_INLINE int64_t inner_pixels(const Window& w, int64_t width, int64_t pixels) {
  const int64_t room = pixels - w.pad_left;
  return room < 0 ? 0 : room < width ? room : width;
}

// Zero the left and right borders of every row once; the pixels between them are rewritten row by row.
MNV3_INLINE void clear_borders(const Ring& ring, const Window& w, int64_t width, int64_t pixels) {
  const int64_t left = w.pad_left < pixels ? w.pad_left : pixels, inner = inner_pixels(w, width, pixels);
  for (int64_t r = 0; r < ring.rows; r++) {
    float* row = ring.data + r * ring.row_floats;
    clear(row, left * ring.pixel_floats);
    clear(row + (left + inner) * ring.pixel_floats, (pixels - left - inner) * ring.pixel_floats);
  }
}

// output[p][0..16) = up to 16 channels of `pixels` pixels with any strides, the missing ones zero.
MNV3_INLINE void gather_pixels(const float* input, int64_t pixel_stride, int64_t channel_stride, int64_t pixels,
                               int64_t channels, float* output, int64_t output_stride) {
  if (channel_stride == 1 && channels >= kPanel) {
    for (int64_t p = 0; p < pixels; p++) {
      for (int v = 0; v < kPanel; v += kLanes)
        store<kLanes>(output + p * output_stride + v, load<kLanes>(input + p * pixel_stride + v));
    }
    return;
  }
  if (channel_stride == 1 && channels == 8) {
    for (int64_t p = 0; p < pixels; p++) {
      __builtin_memcpy(output + p * output_stride, input + p * pixel_stride, 32);
      __builtin_memset(output + p * output_stride + 8, 0, 32);
    }
    return;
  }
  for (int64_t c = 0; c < kPanel; c++) {
    const float* in = input + c * channel_stride;
    if (c < channels)
      for (int64_t p = 0; p < pixels; p++) output[p * output_stride + c] = in[p * pixel_stride];
    else
      for (int64_t p = 0; p < pixels; p++) output[p * output_stride + c] = 0;
  }
}

}  // namespace
}  // namespace MNV3_ISA
}  // namespace mnv3_fast
