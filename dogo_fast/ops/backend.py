"""Which implementation computes a loss."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from dogo_fast import validation

BACKENDS = ("auto", "triton", "reference")
ENVIRONMENT_VARIABLE = "DOGO_FAST_BACKEND"
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def interpreting() -> bool:
    """Whether Triton was told to interpret its kernels on the CPU (read by Triton when the kernels are defined)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def resolve_backend(requested: str, tensors: Sequence[Tensor]) -> str:
    """The backend that runs: ``"triton"`` or ``"reference"``.

    Raises:
        ValueError: an unknown name, here or in the environment variable, or Triton for tensors that are not on a GPU.
        TypeError: Triton for float64.
    """
    validation.check_choice("backend", requested, BACKENDS)
    asked_by = f"backend={requested!r}"
    if requested == "auto":
        requested = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        asked_by = f"the environment's {ENVIRONMENT_VARIABLE}={requested}"
        validation.check_choice(f"the environment variable {ENVIRONMENT_VARIABLE}", requested, BACKENDS)
    fit = all(tensor.dtype in TRITON_DTYPES for tensor in tensors)
    if requested == "auto":
        return "triton" if tensors[0].is_cuda and fit else "reference"
    if requested == "triton":
        if not fit:
            dtypes = sorted({str(tensor.dtype) for tensor in tensors})
            raise TypeError(
                f"{asked_by} takes float32, bfloat16 and float16, got {', '.join(dtypes)}: use 'reference' or 'auto'"
            )
        if not (tensors[0].is_cuda or interpreting()):
            raise ValueError(
                f"{asked_by} needs tensors on a GPU, got {tensors[0].device}: use 'auto', or set "
                "TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's (slow) interpreter"
            )
    return requested
