"""Optimisers whose step never waits for the host, and learning-rate schedules.

Adam, AdamW and SGD are torch's, fused and capturable. LARS is ours, since no kept library has one that runs without
reading tensors back. Every learning rate is a 0-d tensor on the device, which the schedule writes between the steps: a
captured step reads what it finds there.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dogo_fast import private

LARS_TRUST = 1e-3


class LARS(private.ScalesItself, torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv 1708.03888), with momentum.

    For a weight w of two dimensions or more, with gradient g:

        d = g + λ w,   t = η ‖w‖ / ‖d‖ (1 where either norm is 0),   v ← m v + t d,   w ← w − γ v.

    Biases and the parameters of norms have λ = 0 and t = 1, as in SimCLR. Nothing is read back, so that the step can be
    captured; under a gradient scaler a step with gradients that are not finite changes nothing.

    Args:
        params: parameters.
        lr: γ, a number or a 0-d tensor.
        momentum: m, from 0, below 1.
        weight_decay: λ ≥ 0.
        trust: η > 0.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = LARS_TRUST,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; a closure is not supported."""
        if closure is not None:
            raise ValueError("closure must be None, LARS evaluates nothing twice")
        for group in self.param_groups:
            parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_group(group, parameters)

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if grad_scale is not None:
            private.foreach_div_(gradients, grad_scale)
        matrices = [index for index, parameter in enumerate(parameters) if parameter.dim() > 1]
        if matrices:
            weights, directions = [parameters[i] for i in matrices], [gradients[i] for i in matrices]
            private.foreach_add_(directions, weights, alpha=group["weight_decay"])
            weight_norms = torch.stack(private.foreach_norm(weights))
            norms = torch.stack(private.foreach_norm(directions))
            adapted = group["trust"] * weight_norms / norms
            trusts = torch.where((weight_norms > 0) & (norms > 0), adapted, 1.0)
            private.foreach_mul_(directions, list(trusts.unbind()))
        velocities = [self._velocity(parameter) for parameter in parameters]
        updated = list(private.foreach_mul(velocities, group["momentum"]))
        private.foreach_add_(updated, gradients)
        rate = torch.as_tensor(group["lr"])
        if found_inf is not None:
            keeps = found_inf.squeeze() > 0
            updated = [torch.where(keeps, old, new) for old, new in zip(velocities, updated, strict=True)]
            rate = torch.where(keeps, 0.0, rate)
        private.foreach_copy_(velocities, updated)
        private.foreach_mul_(updated, -rate.to(updated[0].device))
        private.foreach_add_(parameters, updated)

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity: Tensor = state["momentum_buffer"]
        return velocity


def build_optimiser(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
    device: torch.device,
    decay_all: bool = False,
) -> torch.optim.Optimizer:
    """An optimiser whose learning rate is a 0-d tensor on the device.

    Args:
        name: ``"adam"``, ``"adamw"``, ``"sgd"`` or ``"lars"``.
        parameters: of one peer, float32, on the device.
        momentum: of SGD and LARS.
        decay_all: let biases and the parameters of norms, of one dimension or none, decay too; LARS never does.

    Raises:
        ValueError: another name.
    """
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in parameters:
        (decaying if decay_all or name == "lars" or parameter.dim() > 1 else others).append(parameter)
    both: list[dict[str, Any]] = [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in both if group["params"]]
    rate = torch.tensor(learning_rate, dtype=torch.float32, device=device)
    options: dict[str, Any] = {"lr": rate, "weight_decay": weight_decay}
    if name in ("adam", "adamw"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return kind(groups, fused=True, capturable=device.type == "cuda", **options)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, fused=True, **options)
    if name == "lars":
        return LARS(decaying, momentum=momentum, **options)
    raise ValueError(f"name must be adam, adamw, sgd or lars, got {name!r}")


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Write the learning rate where the step reads it; the host does not wait."""
    for group in optimiser.param_groups:
        group["lr"].fill_(value)


def learning_rate_factor(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    """What the learning rate is multiplied by in a step.

    Rises linearly over the warm-up, to 1 in its last step. Then ``"cosine"`` falls as a half cosine that reaches 0
    one step after the last, and ``"constant"`` stays.

    Args:
        step: from 0.
        steps: of the whole run.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2
