"""The operators on GPUs, in Triton. Nothing here is imported before a tensor on a GPU needs it."""
