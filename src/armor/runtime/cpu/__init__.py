"""The CPU backend: Numba kernels on the stored tensors."""
