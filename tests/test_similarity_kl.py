"""Similarity KL by the kernels against the float64 oracle, one test a numerical regime (numerics.py has the bar)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from forms import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import check, check_draws, evaluate, generator, gradient_error, projections
from torch import Tensor

from dogo_fast import functional, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TEMPERATURES = [0.02, 0.05, 0.1, 0.5, 1.0]


def losses(temperature: float = 0.1, **options: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Functions of (queries, keys, teacher_queries, teacher_keys)."""

    def fused(*inputs: Tensor) -> Tensor:
        return functional.similarity_kl(inputs[:2], inputs[2:], temperature, **options)

    def dense(*inputs: Tensor) -> Tensor:
        # the dense formula needs one dtype at a time; mixed peers meet in float32 as type promotion has it
        return reference.similarity_kl(inputs[:2], inputs[2:], temperature, **options)

    return fused, dense


def pairs(
    R: int, C: int, D: int, D_teacher: int, *, dtype: torch.dtype = torch.float32, device: Any = "cpu", seed: int = 0
) -> list[Tensor]:
    shapes = [(R, D), (C, D), (R, D_teacher), (C, D_teacher)]
    source = generator(seed)
    return [torch.randn(shape, generator=source).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_random_pairs_at_every_temperature(device: torch.device, temperature: float, dtype: torch.dtype) -> None:
    inputs = pairs(37, 37, 24, 24, dtype=dtype, device=device)
    check(*losses(temperature, reduction="none"), inputs, torch.ones(37, device=device))


@pytest.mark.parametrize(
    ("R", "C", "D", "D_teacher"),
    [(1, 1, 1, 1), (1, 70, 16, 3), (70, 1, 5, 40), (65, 63, 128, 64), (9, 130, 20, 300), (5, 4, 1000, 16)],
)
def test_rectangular_and_of_unequal_width(device: torch.device, R: int, C: int, D: int, D_teacher: int) -> None:
    check(*losses(0.1), pairs(R, C, D, D_teacher, device=device))


@pytest.mark.parametrize("detach_teacher", [True, False])
@pytest.mark.parametrize("temperatures", [(0.1, 0.05), (0.05, 0.5), (0.02, 0.07), (0.1, None)])
def test_two_temperatures(device: torch.device, temperatures: tuple[float, float | None], detach_teacher: bool) -> None:
    options = {"teacher_temperature": temperatures[1], "detach_teacher": detach_teacher}
    check(*losses(temperatures[0], **options), pairs(37, 50, 24, 17, device=device))


def test_temperatures_a_thousand_apart(device: torch.device) -> None:
    """1/T multiplies the rounding of a cosine, which differs between any two float32 programs: 2e-8/T of slack, as
    below."""
    inputs = pairs(37, 50, 24, 17, device=device)
    check(*losses(10.0, teacher_temperature=0.01), inputs, slack=1e-6 + 2e-8 / 0.01)
    check(*losses(0.01, teacher_temperature=10.0), inputs, slack=1e-6 + 2e-8 / 0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_differentiated_teacher_in_every_dtype(device: torch.device, dtype: torch.dtype) -> None:
    check(*losses(0.2, detach_teacher=False), pairs(37, 50, 24, 300, dtype=dtype, device=device))


@pytest.mark.parametrize("temperature", [0.02, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_nearly_equal_peers(device: torch.device, temperature: float, distance: float) -> None:
    """P_student − P_teacher is a difference of nearly equal numbers: the KL stays above −1e-6, and the gradient's
    relative error is bounded by twice that of the dense formula or by the rounding of a cosine (4 × 2⁻²³) over the
    distance of the peers."""
    queries, keys, noise, more = pairs(37, 37, 24, 24, device=device)
    inputs = [queries, keys, queries + distance * noise, keys + distance * more]
    fused, dense = losses(temperature, reduction="none")
    weights = torch.ones(37, device=device)
    value, gradients = evaluate(fused, inputs, weights)
    exact, oracle = evaluate(dense, [tensor.double() for tensor in inputs], weights)
    _, plain = evaluate(dense, inputs, weights)
    assert value.min() >= -1e-6
    assert float((value.double() - exact).abs().max()) <= 1e-6 + 1e-7 / temperature * float(exact.max()) ** 0.5
    for ours, theirs, truth in zip(gradients[:2], plain[:2], oracle[:2], strict=True):
        assert gradient_error(ours, truth) <= max(2 * gradient_error(theirs, truth), 2**-21 / distance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_equal_peers_have_exactly_zero_divergence(device: torch.device, temperature: float, dtype: torch.dtype) -> None:
    """With running maxima (T = 0.02) a GPU's compiler contracts the difference of the two logits to one rounding, which
    the peers then do not share: 1.1e-9 on an H200."""
    inputs = pairs(70, 50, 24, 24, dtype=dtype, device=device)
    value, gradients = evaluate(losses(temperature)[0], [*inputs[:2], *inputs[:2]])
    assert abs(value) <= (1e-8 if device.type == "cuda" and temperature < 2 / 60 else 0)
    assert all(gradient.norm() <= 1e-6 for gradient in gradients)


def test_a_single_key_has_exactly_zero_divergence_and_gradient(device: torch.device) -> None:
    inputs = pairs(5, 1, 16, 8, device=device)
    value, gradients = evaluate(losses(10.0, teacher_temperature=0.01, detach_teacher=False)[0], inputs)
    assert value == 0 and all(gradient.norm() == 0 for gradient in gradients)


@pytest.mark.parametrize("detach_teacher", [True, False])
def test_running_maxima_over_several_key_tiles(device: torch.device, detach_teacher: bool) -> None:
    """When a later tile raises a maximum, the sums so far and the means of Δ in them move with it."""
    options = {"teacher_temperature": 0.02, "detach_teacher": detach_teacher}
    check(*losses(0.07, **options), pairs(150, 150, 24, 17, device=device), slack=1e-6 + 2e-8 / 0.02)


def test_keys_opposite_to_every_query(device: torch.device) -> None:
    """All cosines near −1 at T = 0.01: the exponential of a padded key, whose cosine is 0, overflows beside them."""
    queries, noise, teacher, more = pairs(5, 5, 16, 16, device=device)
    queries, teacher = queries[:1].expand(5, 16) + 0.01 * queries, teacher[:1].expand(5, 16) + 0.01 * teacher
    inputs = [queries, 0.01 * noise - queries, teacher, 0.01 * more - teacher]
    check(*losses(0.01, detach_teacher=False), inputs, slack=1e-6 + 2e-8 / 0.01)


def test_one_confident_key(device: torch.device) -> None:
    """The teacher is sure of the diagonal, the student of nothing: one term carries each row."""
    draws = []
    for seed in range(4):
        queries, keys, teacher, noise = pairs(24, 24, 64, 64, device=device, seed=seed)
        draws.append([queries, keys, teacher, teacher + 1e-3 * noise])
    check_draws(*losses(0.05), draws)


def test_the_gradient_of_a_confident_teacher(device: torch.device) -> None:
    """P_t (Δ − mean Δ), with P_t nearly 1 at one key, is a difference of numbers near 30 that nearly cancel. The dense
    formula loses 7e-5 of it; the mean, a quotient of two sums, may cost as much again on either side: four times the
    dense error."""
    errors = []
    for seed in range(4):
        queries, keys, teacher, noise = pairs(24, 24, 64, 64, device=device, seed=seed)
        inputs = [queries, keys, teacher, teacher + 1e-3 * noise]
        fused, dense = losses(0.05, detach_teacher=False)
        _, ours = evaluate(fused, inputs)
        _, plain = evaluate(dense, inputs)
        _, exact = evaluate(dense, [tensor.double() for tensor in inputs])
        errors.append(
            [(gradient_error(x, z), gradient_error(y, z)) for x, y, z in zip(ours, plain, exact, strict=True)]
        )
    our_mean, dense_mean = torch.tensor(errors).square().mean(0).sqrt().unbind(1)
    assert (our_mean <= 4 * dense_mean + 1e-6).all()


def test_identical_rows(device: torch.device) -> None:
    (row,) = projections(1, 32, count=1, device=device)
    same = row.repeat(12, 1)
    value, gradients = evaluate(losses(0.05)[0], [same, same, 2 * same, 3 * same])
    assert value.abs() <= 1e-6 and all(gradient.norm() <= 1e-5 for gradient in gradients)


def test_zero_rows(device: torch.device) -> None:
    queries, keys, teacher_queries, teacher_keys = pairs(12, 15, 20, 20, device=device)
    queries[2], keys[3], teacher_queries[2], teacher_keys[4] = 0, 0, 0, 0
    check(*losses(0.1, detach_teacher=False), [queries, keys, teacher_queries, teacher_keys])


def test_non_contiguous_inputs(device: torch.device) -> None:
    inputs = [
        projections(30, 20, count=1, device=device, seed=seed)[0].T if seed % 2 else wide[:, ::2]
        for seed, wide in enumerate(projections(20, 60, count=4, device=device))
    ]
    check(*losses(0.1), inputs)


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_reductions(device: torch.device, reduction: str, temperature: float) -> None:
    weights = torch.randn(37, generator=generator(5)).to(device) if reduction == "none" else None
    options = {"reduction": reduction, "detach_teacher": False}
    value, _ = check(*losses(temperature, **options), pairs(37, 50, 24, 17, device=device), weights)
    assert value.shape == ((37,) if reduction == "none" else ())


@pytest.mark.parametrize("detach_teacher", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_learnable_temperatures(device: torch.device, detach_teacher: bool, shared: bool) -> None:
    def loss(function: Any, **options: Any) -> Callable[..., Tensor]:
        def of(*inputs: Tensor) -> Tensor:
            temperature, teacher_temperature = inputs[4:]
            return function(
                inputs[:2],
                inputs[2:4],
                temperature,
                teacher_temperature=None if shared else teacher_temperature,
                detach_teacher=detach_teacher,
                **options,
            )

        return of

    temperatures = [torch.tensor(0.1, device=device), torch.tensor(0.3, device=device)]
    inputs = [*pairs(37, 50, 24, 17, device=device), *temperatures]
    check(loss(functional.similarity_kl), loss(reference.similarity_kl), inputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_nan_and_inf_give_a_nan_loss(device: torch.device, bad: float, place: int) -> None:
    inputs = pairs(10, 12, 16, 16, device=device)
    inputs[place][4, 7] = bad
    assert losses(0.1)[0](*inputs).isnan()


@given(
    R=st.integers(1, 80),
    C=st.integers(1, 80),
    D=st.integers(1, 140),
    D_teacher=st.integers(1, 140),
    dtype=st.sampled_from(DTYPES),
    temperature=st.floats(0.01, 10.0),
    teacher_temperature=st.one_of(st.none(), st.floats(0.01, 10.0)),
    detach_teacher=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=examples(12), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_shape_dtype_and_temperature(
    device: torch.device,
    R: int,
    C: int,
    D: int,
    D_teacher: int,
    dtype: torch.dtype,
    temperature: float,
    teacher_temperature: float | None,
    detach_teacher: bool,
    seed: int,
) -> None:
    fused, dense = losses(temperature, teacher_temperature=teacher_temperature, detach_teacher=detach_teacher)
    inputs = pairs(R, C, D, D_teacher, dtype=dtype, device=device, seed=seed)
    # 1/temperature multiplies the rounding of a cosine, which differs between any two float32 programs
    lowest = min(temperature, teacher_temperature or temperature)
    check(fused, dense, inputs, slack=1e-6 + 2e-8 / lowest)
