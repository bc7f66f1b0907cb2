"""Which implementation computes a loss."""

import os
from collections.abc import Container, Sequence

import torch
from torch import Tensor

from dogo_fast import private, validation
from dogo_fast.ops import extension

BACKENDS = ("auto", "triton", "cpp", "reference")
"""What ``backend`` may be."""
ENVIRONMENT_VARIABLE = "DOGO_FAST_BACKEND"
AUTOCAST_DEVICES = frozenset(
    kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(kind)
)
"""Kinds of device that autocast knows; asked here, since torch.compile of torch 2.11 cannot trace the question."""

for _function in (extension.load, extension.available):  # here: setup.py reads extension.py where there is no torch
    private.constant_to_compile(_function)

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FUSED = ("triton", "cpp")


def interpreting() -> bool:
    """Whether Triton was told to interpret its kernels on the CPU (read by Triton when the kernels are defined)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def resolve_backend(requested: str, tensors: Sequence[Tensor], kernels: Container[str] = FUSED) -> str:
    """The backend that runs: ``"triton"``, ``"cpp"`` or ``"reference"``.

    Args:
        requested: one of BACKENDS.
        tensors: what the loss is given.
        kernels: the backends that have kernels for the loss.

    Raises:
        ValueError: an unknown name, here or in the environment variable, a backend without kernels for the loss, Triton
            for tensors that are not on a GPU, or C++ for tensors that are not on the CPU.
        TypeError: Triton for float64.
        ExtensionError: the C++ kernels were asked for by name and cannot be had (``"auto"`` warns once instead, and
            takes the reference).
    """
    validation.check_choice("backend", requested, BACKENDS)
    asked_by = f"backend={requested!r}"
    if requested == "auto":
        requested = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        asked_by = f"the environment's {ENVIRONMENT_VARIABLE}={requested}"
        validation.check_choice(f"the environment variable {ENVIRONMENT_VARIABLE}", requested, BACKENDS)
    if requested == "auto":
        return _automatic(tensors, kernels)
    if requested in FUSED and requested not in kernels:
        raise ValueError(f"{asked_by} has no kernels for this loss: use 'reference' or 'auto'")
    if requested == "triton":
        _check_triton(asked_by, tensors)
    if requested == "cpp":
        _check_cpp(asked_by, tensors)
    return requested


def _automatic(tensors: Sequence[Tensor], kernels: Container[str]) -> str:
    if tensors[0].is_cuda:
        return "triton" if "triton" in kernels and _fit_triton(tensors) else "reference"
    if tensors[0].device.type != "cpu" or "cpp" not in kernels:
        return "reference"
    return "cpp" if extension.available() else "reference"


def _fit_triton(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.dtype in TRITON_DTYPES for tensor in tensors)


def _check_triton(asked_by: str, tensors: Sequence[Tensor]) -> None:
    if not _fit_triton(tensors):
        dtypes = sorted({str(tensor.dtype) for tensor in tensors})
        raise TypeError(
            f"{asked_by} takes float32, bfloat16 and float16, got {', '.join(dtypes)}: use 'reference' or 'auto'"
        )
    if not (tensors[0].is_cuda or interpreting()):
        raise ValueError(
            f"{asked_by} needs tensors on a GPU, got {tensors[0].device}: use 'auto', or set "
            "TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's (slow) interpreter"
        )


def _check_cpp(asked_by: str, tensors: Sequence[Tensor]) -> None:
    if tensors[0].device.type != "cpu":
        raise ValueError(f"{asked_by} needs tensors on the CPU, got {tensors[0].device}: use 'auto'")
    extension.load()
