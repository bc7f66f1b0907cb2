"""LARS is its equations, the fused optimisers take tensor learning rates, the schedules are what they say."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dogo_fast.training.optimisers import LARS, build_optimiser, learning_rate_factor, set_learning_rate


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def gradients(module: nn.Module, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=source).to(parameter.dtype)


def lars_by_hand(module: nn.Module, velocity: dict[str, Tensor], rate: float, decay: float, momentum: float) -> None:
    """You, Gitman, Ginsburg, algorithm 1, in float64, one parameter at a time."""
    for name, parameter in module.named_parameters():
        w, g = parameter.data, parameter.grad
        if w.dim() > 1:
            d = g + decay * w
            d = d * (0.001 * w.norm() / d.norm() if w.norm() > 0 and d.norm() > 0 else 1.0)
        else:
            d = g
        velocity[name] = momentum * velocity.get(name, torch.zeros_like(w)) + d
        parameter.data = w - rate * velocity[name]


def test_lars_is_the_papers_algorithm_without_decay_or_trust_for_biases_and_norms():
    ours, theirs = network(), network().double()
    with torch.no_grad():
        for module in (ours, theirs):
            module[3].weight.zero_()  # a norm of 0 must not divide by 0
    optimiser = LARS(ours.parameters(), lr=torch.tensor(0.5), momentum=0.8, weight_decay=0.1)
    velocity: dict[str, Tensor] = {}
    for step in range(4):
        for module in (ours, theirs):
            gradients(module, step)
        set_learning_rate(optimiser, 0.5 / (step + 1))
        optimiser.step()
        lars_by_hand(theirs, velocity, 0.5 / (step + 1), 0.1, 0.8)
    for parameter, exact in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_overflowed_gradients_change_nothing_and_scaled_ones_are_unscaled(name: str):
    modules = [network(), network()]
    optimisers = [
        build_optimiser(
            name, module.parameters(), learning_rate=0.1, weight_decay=0.01, momentum=0.9, device=torch.device("cpu")
        )
        for module in modules
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for step in range(4):
        for module in modules:
            gradients(module, step)
        for parameter in modules[0].parameters():
            parameter.grad *= scaler.get_scale()
        if step == 2:
            next(modules[0].parameters()).grad[0, 0] = math.inf
            before = [parameter.clone() for parameter in modules[0].parameters()]
            states = [value.clone() for state in optimisers[0].state.values() for value in state.values()]
        scaler.step(optimisers[0])
        scaler.update()
        if step == 2:
            after = [value for state in optimisers[0].state.values() for value in state.values()]
            assert all(map(torch.equal, before, modules[0].parameters()))
            assert all(map(torch.equal, states, after))
        else:
            optimisers[1].step()
    assert scaler.get_scale() == 512.0
    for scaled, plain in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_the_learning_rate_is_a_tensor_that_stays_where_it_is(name: str):
    module = network()
    optimiser = build_optimiser(
        name, module.parameters(), learning_rate=0.1, weight_decay=0.0, momentum=0.9, device=torch.device("cpu")
    )
    rate = optimiser.param_groups[0]["lr"]
    assert isinstance(rate, Tensor) and rate.dim() == 0
    gradients(module, 0)
    before = [parameter.clone() for parameter in module.parameters()]
    set_learning_rate(optimiser, 0.0)
    optimiser.step()
    assert optimiser.param_groups[0]["lr"] is rate
    assert all(map(torch.equal, before, module.parameters()))


def test_an_unknown_optimiser_is_refused_by_name():
    with pytest.raises(ValueError, match="name must be adam, adamw, sgd or lars, got 'lamb'"):
        build_optimiser(
            "lamb", network().parameters(), learning_rate=1.0, weight_decay=0, momentum=0, device=torch.device("cpu")
        )


def test_lars_refuses_a_closure():
    with pytest.raises(ValueError, match="closure must be None"):
        LARS(network().parameters(), lr=0.1).step(lambda: 0.0)


def test_warm_up_rises_linearly_to_one_and_the_cosine_falls_to_zero():
    factors = [learning_rate_factor(step, 100, 10, "cosine") for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5) and factors[100] == pytest.approx(0.0)
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert [learning_rate_factor(step, 100, 0, "constant") for step in (0, 50, 99)] == [1.0] * 3
    assert learning_rate_factor(99, 100, 100, "cosine") == 1.0


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_biases_and_norms_decay_only_where_all_do(name: str, decay_all: bool):
    """Without gradients of the loss only the decay moves a weight."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    options = {"learning_rate": 0.1, "weight_decay": 0.5, "momentum": 0.9, "device": torch.device("cpu")}
    optimiser = build_optimiser(name, module.parameters(), decay_all=decay_all, **options)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 6
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moved = {key for key, value in module.named_parameters() if not torch.equal(value, before[key])}
    zero = {key for key, value in before.items() if not value.any()}
    matrices = {"0.weight", "3.weight"}
    assert moved == (set(before) - zero if decay_all and name != "lars" else matrices)
