"""Triton kernels, installed as ``dogo_fast.kernels``: one family a file, framework-free (pointers, strides,
numbers)."""
