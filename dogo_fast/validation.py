"""Checks of what users pass to the losses. Each failure names the argument, what it was and what is allowed."""

import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST_FLOAT = sys.float_info.max
SMALLEST_TEMPERATURE = 1e-30
"""Below, 1/temperature overflows float32."""

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def describe(value: object) -> str:
    """A short text for an error message: tensors by shape, dtype and device, everything else by repr."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def check_rows(name: str, value: object) -> Tensor:
    """A floating-point tensor [rows, D ≥ 1]."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape [N, D], got {describe(value)}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {describe(value)}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {value.layout}")
    if value.dim() != 2 or value.shape[1] < 1 or value.shape[0] < 1:
        raise ValueError(f"{name} must have shape [N, D] with N and D at least 1, got {describe(value)}")
    return value


def check_views(names: tuple[str, str], a: object, b: object) -> tuple[Tensor, Tensor]:
    """Two views of the same images: equal shape [N ≥ 2, D], dtype and device."""
    view_a, view_b = check_rows(names[0], a), check_rows(names[1], b)
    if view_a.shape != view_b.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape [N, D], "
            f"got {tuple(view_a.shape)} and {tuple(view_b.shape)}"
        )
    if view_a.shape[0] < 2:
        raise ValueError(f"{names[0]} must have at least 2 rows (N ≥ 2: no negatives otherwise), got N = 1")
    check_same_kind(names, view_a, view_b)
    return view_a, view_b


def check_queries_and_keys(name: str, pair: object) -> tuple[Tensor, Tensor]:
    """A pair (queries [R, D], keys [C, D]) of one dtype on one device."""
    queries, keys = check_pair(name, pair, "(queries, keys)")
    names = (f"{name} queries", f"{name} keys")
    queries, keys = check_rows(names[0], queries), check_rows(names[1], keys)
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same width D, got shapes "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    check_same_kind(names, queries, keys)
    return queries, keys


def check_pair(name: str, pair: object, what: str) -> tuple[Any, Any]:
    """A sequence of exactly two things."""
    if isinstance(pair, Tensor) or not isinstance(pair, Sequence) or len(pair) != 2:
        length = f" of length {len(pair)}" if isinstance(pair, Sequence) else ""
        raise TypeError(f"{name} must be a pair {what} of tensors, got a {type(pair).__name__}{length}")
    return pair[0], pair[1]


def check_same_kind(names: tuple[str, str], first: Tensor, second: Tensor) -> None:
    """The two tensors of one peer share dtype and device."""
    if first.dtype != second.dtype:
        raise TypeError(f"{names[0]} and {names[1]} must have the same dtype, got {first.dtype} and {second.dtype}")
    check_same_device(names, first, second)


def check_same_device(names: tuple[str, str], first: Tensor, second: Tensor) -> None:
    """The two tensors lie on one device."""
    if first.device != second.device:
        raise ValueError(
            f"{names[0]} and {names[1]} must be on the same device, got {first.device} and {second.device}"
        )


def check_temperature(name: str, value: object, device: torch.device | None) -> float | Tensor:
    """A finite number above 0, or a 0-d floating-point tensor on the inputs' device (None: any).

    The value of a tensor is not read (that would wait for the device): a temperature tensor that is not above 0 gives
    NaN losses instead.
    """
    if isinstance(value, Tensor):
        if value.dim() != 0 or value.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name} must be a number or a 0-d floating-point tensor, got {describe(value)}")
        if device is not None and value.device != device:
            raise ValueError(f"{name} must be on the inputs' device {device}, got {describe(value)}")
        return value
    number = check_number(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be finite and above 0, got {number}")
    if number < SMALLEST_TEMPERATURE:
        raise ValueError(f"{name} must be at least {SMALLEST_TEMPERATURE}, got {number}")
    return number


def check_number(name: str, value: object) -> float:
    """A finite real number, Python's or NumPy's."""
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if isinstance(value, float):
        number = value
    else:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not -LARGEST_FLOAT <= number <= LARGEST_FLOAT:  # not math.isfinite, which torch.compile cannot trace
        raise ValueError(f"{name} must be finite, got {describe(value)}")
    return number


def check_flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return value


def check_weights(name: str, value: object, peers: int = 2) -> tuple[float, ...]:
    """One finite number for all peers, or one for each."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != peers:
            several = "a pair with one number per peer" if peers == 2 else f"{peers} numbers, one per peer"
            raise ValueError(f"{name} must be a number or {several}, got {value!r}")
        return tuple(check_number(f"{name}[{place}]", each) for place, each in enumerate(value))
    return (check_number(name, value),) * peers


def check_choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value
