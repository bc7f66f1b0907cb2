"""What the library needs of torch that torch does not call public, all in this file.

tests/test_private.py tries each, and says in which version it was seen; a new version that lacks one fails there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data._utils import signal_handling

__all__ = [
    "ScalesItself",
    "abandon_step",
    "constant_to_compile",
    "end_workers",
    "foreach_add_",
    "foreach_copy_",
    "foreach_div_",
    "foreach_mul",
    "foreach_mul_",
    "foreach_norm",
    "forget_workers",
    "is_constant",
    "scaler_tensors",
    "tree_map_only",
]

foreach_add_ = torch._foreach_add_
foreach_copy_ = torch._foreach_copy_
foreach_div_ = torch._foreach_div_
foreach_mul = torch._foreach_mul
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm


def constant_to_compile(function: Callable[..., Any]) -> None:
    """torch.compile is to call the function while it traces and keep the answer. This is what
    torch.compiler.assume_constant_result does, which would import the compiler, seconds long, into every process."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_constant(number: float) -> bool:
    """Whether torch.compile, while it traces, holds the number for the same in every call."""
    from torch.fx.experimental import symbolic_shapes  # imports the compiler

    return symbolic_shapes.has_static_value(number)


class ScalesItself:
    """An optimiser whose step takes ``grad_scale`` and ``found_inf`` from a gradient scaler, which then reads nothing
    back."""

    _step_supports_amp_scaling = True


def scaler_tensors(scaler: torch.amp.GradScaler) -> list[Tensor]:
    """What a step of an enabled scaler changes, once it has scaled something."""
    assert scaler._scale is not None and scaler._growth_tracker is not None
    return [scaler._scale, scaler._growth_tracker]


def abandon_step(scaler: torch.amp.GradScaler) -> None:
    """Forget that gradients were unscaled: the step was left half-way."""
    scaler._per_optimizer_states.clear()


def end_workers(iterator: Any) -> None:
    """End the workers of a DataLoader's iterator at once, whatever they do and whichever signals they ignore; harmless
    where they have ended."""
    forget_workers(iterator)
    for worker in getattr(iterator, "_workers", ()):
        worker.kill()
    iterator._shutdown_workers()


def forget_workers(iterator: Any) -> None:
    """The death of a DataLoader's workers is from now on no error of this process, which torch's handler of SIGCHLD
    would make of it."""
    signals: Any = signal_handling
    if getattr(iterator, "_worker_pids_set", False):
        signals._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
