// The C functions of libmnv3_fast_ops that the Python module calls.
#pragma once
#include <cstddef>
#include <cstdint>

#define MNV3_EXPORT __attribute__((visibility("default")))

extern "C" {
MNV3_EXPORT const char* const* mnv3_fast_cpu_features();      // ends in null
MNV3_EXPORT const char* const* mnv3_fast_instruction_sets();  // ends in null
MNV3_EXPORT const char* mnv3_fast_instruction_set();
MNV3_EXPORT bool mnv3_fast_set_instruction_set(const char* name);
MNV3_EXPORT const char* mnv3_fast_take_variant(const char* op);  // null: no such op
MNV3_EXPORT double mnv3_fast_fma_peak(double seconds);           // GMAC/s of one core
MNV3_EXPORT int64_t mnv3_fast_last_run(double* seconds);  // how many this thread has run; the kernels' time of the last
MNV3_EXPORT int64_t mnv3_fast_arena_bytes();              // scratch memory that this thread keeps
MNV3_EXPORT void mnv3_fast_time_layers(bool on);          // of the plans that this thread runs from now on
MNV3_EXPORT int64_t mnv3_fast_layer_times(const int64_t** nanoseconds);  // of this thread's last plan; their number
MNV3_EXPORT void mnv3_fast_tile(int64_t* pixels, int64_t* channels);     // of a 1x1 conv with the set in use
MNV3_EXPORT bool mnv3_fast_watch_unchanged(const void* watch);
MNV3_EXPORT void mnv3_fast_watch_delete(void* watch);
MNV3_EXPORT void mnv3_fast_prefer_huge_pages(void* data, std::size_t bytes);
}
