// Runs a plan over a batch: one image a thread at a time where there are as many images as threads (late layers: a few
// images at a time), else one image with all threads. Scratch comes from the calling thread's arena.
#pragma once
#include "engine/plan.h"

namespace mnv3_fast {

// A batch of images or maps with any strides (in elements).
struct Batch {
  const void* data;
  bool bytes;  // uint8 images instead of float
  int64_t images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, pixel_stride;
};

// Height and width of the output map for an input of this size; throws if a map on the way would be empty.
void output_size(const Plan& plan, int64_t& height, int64_t& width);

// output: [images][output_channels] or dense NHWC. `nanoseconds`, one for each node, takes the time that each node took
// (a pool right behind a 1x1 conv: in the conv's); null for no timing.
void execute(const Plan& plan, const Batch& batch, float* output, int64_t* nanoseconds);

}  // namespace mnv3_fast
