"""Triton kernels, installed as ``dogo_fast.kernels``: one family a file, framework-free (pointers, strides,
numbers)."""

if __name__ != "dogo_fast.kernels":
    # dogo_fast/kernels is a link to this folder; under a second name its classes would be others than those in use.
    raise ImportError(f"{__name__} must be imported as dogo_fast.kernels")
