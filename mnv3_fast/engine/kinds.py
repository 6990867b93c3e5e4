"""The kinds of a plan's nodes and of a network's stages, as csrc/engine/plan.h numbers them."""

STEM, BLOCK, POINTWISE, POOL, LINEAR = 1, 2, 3, 4, 5
