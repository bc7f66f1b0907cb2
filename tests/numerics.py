"""The bar of every numerical test: no worse than twice the dense PyTorch formula in the same dtype, both against float64.

A loss function here takes tensors and returns one tensor or a tuple; its inputs and temperatures that are tensors are
differentiated. Errors of values are |x − oracle| / max(1, |oracle|), of gradients ‖x − oracle‖ / ‖oracle‖.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SLACK = 1e-6

Loss = Callable[..., Any]


def evaluate(loss: Loss, inputs: Sequence[Tensor], weights: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients with respect to every input; a value of several numbers is differentiated along weights."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    total = value if weights is None else (value * weights.to(value.dtype)).sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    return value.detach(), [zero if gradient is None else gradient for zero, gradient in zip(zeros, gradients, strict=True)]


def value_error(value: Tensor, oracle: Tensor) -> float:
    return float(((value.double() - oracle) / oracle.abs().clamp_min(1.0)).abs().max())


def gradient_error(gradient: Tensor, oracle: Tensor) -> float:
    norm = oracle.norm().clamp_min(1e-30)
    return float((gradient.double() - oracle).norm() / norm)


def check(
    fused: Loss, dense: Loss, inputs: Sequence[Tensor], weights: Tensor | None = None, slack: float = SLACK
) -> tuple[Tensor, list[Tensor]]:
    """Assert the bar for value and every gradient; returns the fused value and gradients."""
    oracle, oracle_gradients = evaluate(dense, [tensor.double() for tensor in inputs], weights)
    plain, plain_gradients = evaluate(dense, inputs, weights)
    value, gradients = evaluate(fused, inputs, weights)
    error, allowed = value_error(value, oracle), 2 * value_error(plain, oracle) + slack
    assert error <= allowed, f"value: error {error:.2e}, allowed {allowed:.2e} (oracle {oracle})"
    for index, (ours, theirs, exact) in enumerate(zip(gradients, plain_gradients, oracle_gradients, strict=True)):
        assert ours.shape == exact.shape and ours.dtype == inputs[index].dtype
        if exact.norm() == 0:
            assert ours.double().norm() <= slack, f"gradient {index}: {ours.norm():.2e} where the exact one is zero"
            continue
        error, allowed = gradient_error(ours, exact), 2 * gradient_error(theirs, exact) + slack
        assert error <= allowed, f"gradient {index}: error {error:.2e}, allowed {allowed:.2e}"
    return value, gradients


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def projections(
    N: int, D: int, *, count: int = 2, dtype: torch.dtype = torch.float32, device: Any = "cpu", seed: int = 0
) -> list[Tensor]:
    """Independent normal projections, drawn on the CPU so that every device sees the same."""
    source = generator(seed)
    return [torch.randn(N, D, generator=source).to(device, dtype) for _ in range(count)]
