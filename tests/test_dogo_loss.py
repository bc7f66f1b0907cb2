"""The whole DoGo loss by the kernels against the float64 oracle, one test a regime (numerics.py has the bar)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from forms import examples, thinned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import check, check_draws, evaluate, generator, gradient_error, value_error
from test_reference import published_recipe
from torch import Tensor

from dogo_fast import DoGoLoss, DoGoLossOutput, functional, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TEMPERATURES = [0.02, 0.05, 0.1, 0.5, 1.0]


def losses(temperature: float = 0.5, kd_temperature: float = 0.1, **options: Any) -> tuple[Callable[..., Any], ...]:
    """Functions of (a_1, b_1, a_2, b_2): all seven outputs stacked."""
    options.setdefault("kd_weight", (2.0, 0.5))

    def fused(*inputs: Tensor) -> Tensor:
        output = functional.dogo_loss(inputs[:2], inputs[2:], temperature, kd_temperature, **options)
        return torch.stack(output)

    weight = options["kd_weight"]
    dense_options = options | {"kd_weight": weight if isinstance(weight, tuple) else (weight, weight)}

    def dense(*inputs: Tensor) -> Tensor:
        output = reference.dogo_loss(inputs[:2], inputs[2:], temperature, kd_temperature, **dense_options)
        return torch.stack([part.to(output.loss.dtype) for part in output])

    return fused, dense


def only(index: int) -> Tensor:
    """Differentiate one of the seven outputs."""
    return torch.eye(7)[index]


def peers(
    N: int, D_1: int, D_2: int, *, dtype: torch.dtype = torch.float32, device: Any = "cpu", seed: int = 0
) -> list[Tensor]:
    source = generator(seed)
    return [torch.randn(N, D, generator=source).to(device, dtype) for D in (D_1, D_1, D_2, D_2)]


@pytest.mark.parametrize(("temperature", "dtype"), thinned(TEMPERATURES, DTYPES), ids=str)
def test_random_peers_at_every_temperature(device: torch.device, temperature: float, dtype: torch.dtype) -> None:
    inputs = peers(37, 24, 24, dtype=dtype, device=device)
    check(*losses(temperature, temperature), inputs, only(0).to(device))


@pytest.mark.parametrize("temperatures", [(0.5, 0.1), (0.5, 0.02), (0.02, 0.1)])
def test_static_and_running_maxima_mixed(device: torch.device, temperatures: tuple[float, float]) -> None:
    check(*losses(*temperatures), peers(37, 24, 17, device=device), only(0).to(device))


@pytest.mark.parametrize(("N", "D_1", "D_2"), [(2, 1, 3), (64, 128, 64), (65, 63, 200), (150, 20, 12), (5, 1000, 16)])
def test_ragged_rows_and_unequal_widths(device: torch.device, N: int, D_1: int, D_2: int) -> None:
    draws = [peers(N, D_1, D_2, device=device, seed=seed) for seed in range(4 if N < 10 else 1)]
    check_draws(*losses(), draws, only(0).to(device))


def test_running_maxima_over_several_key_tiles(device: torch.device) -> None:
    """When a later tile raises a maximum, the sums so far and the means of Δ in them move with it."""
    check(*losses(0.02, 0.02), peers(150, 24, 17, device=device), only(0).to(device), slack=1e-6 + 2e-8 / 0.02)


@pytest.mark.parametrize("part", DoGoLossOutput._fields)
def test_every_output_is_differentiable_on_its_own(device: torch.device, part: str) -> None:
    weights = only(DoGoLossOutput._fields.index(part)).to(device)
    check(*losses(), peers(20, 24, 17, device=device), weights)


def test_outputs_differentiated_together_with_unequal_weights(device: torch.device) -> None:
    weights = torch.linspace(-1, 2, 7, device=device)
    check(*losses(kl_reduction="mean", kd_weight=(100.0, 1.0)), peers(20, 24, 17, device=device), weights)


@pytest.mark.parametrize("kl_reduction", ["batchmean", "mean", "sum"])
def test_reductions_of_the_divergence(device: torch.device, kl_reduction: str) -> None:
    check(*losses(kl_reduction=kl_reduction, kd_weight=0.7), peers(20, 24, 17, device=device), only(0).to(device))


def test_zero_weight_is_each_peer_alone(device: torch.device) -> None:
    inputs = peers(20, 24, 17, device=device)
    value, gradients = evaluate(losses(kd_weight=0.0)[0], inputs, only(0).to(device))
    _, alone = evaluate(lambda a, b: functional.nt_xent(a, b, 0.5), inputs[:2])
    assert value[0] == value[3] + value[4]
    assert all(gradient_error(ours, theirs.double()) <= 1e-6 for ours, theirs in zip(gradients, alone, strict=False))


def test_peers_of_different_dtype(device: torch.device) -> None:
    """Each peer is multiplied in its own dtype and gets gradients in it; the bar is that of the narrower one."""
    a_1, b_1, a_2, b_2 = peers(37, 24, 17, device=device)
    mixed = [a_1.bfloat16(), b_1.bfloat16(), a_2, b_2]
    fused, dense = losses()
    value, gradients = evaluate(fused, mixed, only(0).to(device))
    oracle, exact = evaluate(dense, [tensor.double() for tensor in mixed], only(0).to(device))
    plain, narrow = evaluate(dense, [tensor.bfloat16() for tensor in mixed], only(0).to(device))
    assert value_error(value, oracle) <= 2 * value_error(plain, oracle) + 1e-6
    for ours, theirs, truth, given_tensor in zip(gradients, narrow, exact, mixed, strict=True):
        assert ours.dtype == given_tensor.dtype
        assert gradient_error(ours, truth) <= 2 * gradient_error(theirs, truth) + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearly_equal_peers(device: torch.device, dtype: torch.dtype) -> None:
    a, b, noise, more = (tensor.to(dtype) for tensor in peers(37, 24, 24, device=device))
    inputs = [a, b, a + 1e-3 * noise, b + 1e-3 * more]
    value, _ = check(*losses(), inputs, only(0).to(device))
    assert value[5] >= -1e-6 and value[6] >= -1e-6


def test_equal_peers_have_exactly_zero_divergence(device: torch.device) -> None:
    a, b, *_ = peers(70, 24, 24, device=device)
    value, _ = evaluate(losses()[0], [a, b, a, b], only(0).to(device))
    assert value[5] == 0 and value[6] == 0 and value[3] == value[4]


def test_identical_rows_one_confident_positive_and_zero_rows(device: torch.device) -> None:
    a_1, b_1, a_2, b_2 = peers(24, 40, 40, device=device)
    a_1[5] = a_1[6]
    b_2[0] = a_2[0] * 1.5
    b_1[9], a_2[9] = 0, 0
    check(*losses(0.1, 0.1), [a_1, b_1, a_2, b_2], only(0).to(device))


def test_non_contiguous_inputs(device: torch.device) -> None:
    a_1, b_1, a_2, b_2 = peers(40, 48, 20, device=device)
    strided = [a_1[::2, ::2], b_1[::2, ::2], a_2.T, b_2.T]
    check(*losses(), strided, only(0).to(device))


def test_learnable_temperatures(device: torch.device) -> None:
    def loss(function: Any, **options: Any) -> Callable[..., Tensor]:
        def of(*inputs: Tensor) -> Tensor:
            return torch.stack(function(inputs[:2], inputs[2:4], inputs[4], inputs[5], kd_weight=(2.0, 0.5), **options))

        return of

    temperatures = [torch.tensor(0.4, device=device), torch.tensor(0.1, device=device)]
    fused, dense = loss(functional.dogo_loss), loss(reference.dogo_loss)
    check(fused, dense, [*peers(37, 24, 17, device=device), *temperatures], only(0).to(device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_one_temperature_is_untouched_by_a_dominant_divergence(
    device: torch.device, dtype: torch.dtype
) -> None:
    """The KL does not depend on τ; at a hundred times the weight its rounding must not leak into dL/dτ."""

    def loss(function: Any, **options: Any) -> Callable[..., Tensor]:
        def of(*inputs: Tensor) -> Tensor:
            weights = {"kd_weight": (100.0, 100.0), "kl_reduction": "sum"}
            return torch.stack(function(inputs[:2], inputs[2:4], inputs[4], 0.1, **weights, **options))

        return of

    inputs = [*peers(33, 32, 32, dtype=dtype, device=device), torch.tensor(0.5, device=device)]
    check(loss(functional.dogo_loss), loss(reference.dogo_loss), inputs, only(0).to(device))


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
def test_the_authors_recipe_gives_the_value_of_their_published_formula(device: torch.device) -> None:
    inputs = peers(64, 128, 128)
    loss_1, loss_2 = published_recipe(inputs[:2], inputs[2:])
    recipe = DoGoLoss(0.5, 0.1, kd_weight=(100, 1), kl_reduction="mean")
    a_1, b_1, a_2, b_2 = (tensor.to(device) for tensor in inputs)
    output = recipe((a_1, b_1), (a_2, b_2))
    assert abs(output.loss_1.cpu() - loss_1) <= 1e-6 * loss_1.abs()
    assert abs(output.loss_2.cpu() - loss_2) <= 1e-6 * loss_2.abs()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_give_a_nan_loss(device: torch.device, bad: float) -> None:
    inputs = peers(10, 16, 16, device=device)
    inputs[3][4, 7] = bad
    output = functional.dogo_loss((inputs[0], inputs[1]), (inputs[2], inputs[3]))
    assert output.loss.isnan() and output.loss_1.isnan() and output.loss_2.isnan()


@given(
    N=st.integers(2, 80),
    D_1=st.integers(1, 140),
    D_2=st.integers(1, 140),
    dtype=st.sampled_from(DTYPES),
    temperature=st.floats(0.01, 10.0),
    kd_temperature=st.floats(0.01, 10.0),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=examples(12), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_shape_dtype_and_temperature(
    device: torch.device,
    N: int,
    D_1: int,
    D_2: int,
    dtype: torch.dtype,
    temperature: float,
    kd_temperature: float,
    seed: int,
) -> None:
    inputs = peers(N, D_1, D_2, dtype=dtype, device=device, seed=seed)
    # 1/temperature multiplies the rounding of a cosine, which differs between any two float32 programs
    slack = 1e-6 + 2e-8 / min(temperature, kd_temperature)
    check(*losses(temperature, kd_temperature), inputs, only(0).to(device), slack=slack)
