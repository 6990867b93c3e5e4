// Products of small matrices on tensor cores: D += A B with A [16, 16], B [16, 8] of float16 or bfloat16 and D [16, 8]
// of float32, each spread over the registers of a warp, two neighbours along K in a register. A lane, g = lane / 4 and
// t = lane % 4, holds (PTX ISA, "Matrix Fragments for mma.m16n8k16")
//   a[0] = A[g, 2t..], a[1] = A[g + 8, 2t..], a[2] = A[g, 2t + 8..], a[3] = A[g + 8, 2t + 8..]
//   b[0] = B[2t.., g], b[1] = B[2t + 8.., g]
//   d[0], d[1] = D[g, 2t], D[g, 2t + 1]; d[2], d[3] = D[g + 8, 2t], D[g + 8, 2t + 1]
// A comes from rows in shared memory (load_rows), B from weights that mnv3_fast/gpu/fragments.py has put into the order
// of lanes: a Word is b[0], b[1] of 8 columns, then those of the next 8.
#pragma once
#include <type_traits>

#include "cuda/vector.h"

namespace mnv3_fast {
namespace cuda {

#ifndef __CUDACC__
template <class Element>
struct Fragments {  // of A and B as floats, so that each number is converted once
  float a[8], b[4];
  Fragments(const Word& from_a, const Word& from_b) {
    for (int i = 0; i < 6; i++) {
      const float2 two = i < 4 ? Convert<Element>::pair(from_a, i) : Convert<Element>::pair(from_b, i - 4);
      float* const to = i < 4 ? a + 2 * i : b + 2 * (i - 4);
      to[0] = two.x, to[1] = two.y;
    }
  }
};

// The sum over k in its order; a tensor core adds in one of its own, and does not round in between.
template <class Element>
void multiply_on_host(const Fragments<Element>& mine, float (&d)[4]) {
  simulator::gather(&mine, sizeof(mine));
  const unsigned g = simulator::lane() / 4, t = simulator::lane() % 4;
  for (unsigned i = 0; i < 4; i++)
    for (unsigned k = 0; k < 16; k++) {
      const unsigned from = k % 8 / 2;  // of the four lanes that hold a row, and of those that hold a column
      const auto* row = static_cast<const Fragments<Element>*>(simulator::gathered(4 * g + from));
      const auto* column = static_cast<const Fragments<Element>*>(simulator::gathered(4 * (2 * t + i % 2) + from));
      d[i] = fmaf(row->a[4 * (k / 8) + 2 * (i / 2) + k % 2], column->b[2 * (k / 8) + k % 2], d[i]);
    }
}
#endif

// D += A B; the whole warp calls it.
template <class Element>
__device__ inline void multiply(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&d)[4]) {
  constexpr bool kHalf = std::is_same_v<Element, __half>;
  static_assert(kHalf || std::is_same_v<Element, __nv_bfloat16>, "tensor cores take float16 and bfloat16");
#ifdef __CUDACC__
  if constexpr (kHalf)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  multiply_on_host(Fragments<Element>({{a[0], a[1], a[2], a[3]}}, {{b0, b1}}), d);
#endif
}

// A from shared memory: a lane gives the address of 8 numbers of A, row lane % 16, columns 8 (lane / 16) and on, which
// is a multiple of 16 bytes. Without conflicts of banks if rows lie an odd number of 16 bytes apart. The whole warp
// calls it, between barriers that order it with stores.
__device__ inline void load_rows(const void* mine, uint32_t (&a)[4]) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(mine))));
#else
  const Word row = *static_cast<const Word*>(mine);
  simulator::gather(&row, sizeof(row));
  for (unsigned i = 0; i < 4; i++)
    a[i] = static_cast<const Word*>(simulator::gathered(8 * i + simulator::lane() / 4))->bits[simulator::lane() % 4];
#endif
}

}  // namespace cuda
}  // namespace mnv3_fast
