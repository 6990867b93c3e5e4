"""CUDA kernels compiled for the host and run there, a fiber for each thread (``include/simulator.h``)."""
