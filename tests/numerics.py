"""The bar of every numerical test: no worse than twice the dense PyTorch formula in the same dtype, both against
float64.

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
    return value.detach(), [
        zero if gradient is None else gradient for zero, gradient in zip(zeros, gradients, strict=True)
    ]


def value_error(value: Tensor, oracle: Tensor) -> float:
    return float(((value.double() - oracle) / oracle.abs().clamp_min(1.0)).abs().max())


def gradient_error(gradient: Tensor, oracle: Tensor) -> float:
    """Relative; absolute where the exact gradient is zero (or so small that it is rounding in float64 too)."""
    norm = float(oracle.norm())
    return float((gradient.double() - oracle).norm()) / (norm if norm > 1e-12 else 1.0)


def check(
    fused: Loss, dense: Loss, inputs: Sequence[Tensor], weights: Tensor | None = None, slack: float = SLACK
) -> tuple[Tensor, list[Tensor]]:
    """Assert the bar for value and every gradient; returns the fused value and gradients."""
    value, gradients, ours, plain = _errors(fused, dense, inputs, weights)
    _assert_bar(ours, plain, slack)
    return value, gradients


def check_draws(
    fused: Loss, dense: Loss, draws: Sequence[Sequence[Tensor]], weights: Tensor | None = None, slack: float = SLACK
) -> None:
    """As check, of root-mean-square errors over several draws: where a result is a small difference of large numbers,
    the error of one draw is a matter of luck on either side."""
    ours, plain = [], []
    for inputs in draws:
        _, _, our_errors, plain_errors = _errors(fused, dense, inputs, weights)
        ours.append(our_errors)
        plain.append(plain_errors)
    _assert_bar(_root_mean_square(ours), _root_mean_square(plain), slack)


def _root_mean_square(errors: list[list[float]]) -> list[float]:
    return [float(column) for column in torch.tensor(errors, dtype=torch.float64).square().mean(0).sqrt()]


def _errors(
    fused: Loss, dense: Loss, inputs: Sequence[Tensor], weights: Tensor | None
) -> tuple[Tensor, list[Tensor], list[float], list[float]]:
    """Fused value and gradients, and the errors of the fused and of the dense ones: the value's first."""
    oracle, oracle_gradients = evaluate(dense, [tensor.double() for tensor in inputs], weights)
    plain, plain_gradients = evaluate(dense, inputs, weights)
    value, gradients = evaluate(fused, inputs, weights)
    ours, theirs = [value_error(value, oracle)], [value_error(plain, oracle)]
    for given, gradient, dense_gradient, exact in zip(
        inputs, gradients, plain_gradients, oracle_gradients, strict=True
    ):
        assert gradient.shape == exact.shape and gradient.dtype == given.dtype
        ours.append(gradient_error(gradient, exact))
        theirs.append(gradient_error(dense_gradient, exact))
    return value, gradients, ours, theirs


def _assert_bar(ours: list[float], plain: list[float], slack: float) -> None:
    for index, (error, dense_error) in enumerate(zip(ours, plain, strict=True)):
        what = "value" if index == 0 else f"gradient {index - 1}"
        allowed = 2 * dense_error + slack
        assert error <= allowed, f"{what}: error {error:.2e}, allowed {allowed:.2e}"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def projections(
    N: int, D: int, *, count: int = 2, dtype: torch.dtype = torch.float32, device: Any = "cpu", seed: int = 0
) -> list[Tensor]:
    """Independent normal projections, drawn on the CPU so that every device sees the same."""
    source = generator(seed)
    return [torch.randn(N, D, generator=source).to(device, dtype) for _ in range(count)]
