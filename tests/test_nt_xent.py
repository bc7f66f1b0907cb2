"""NT-Xent by the kernels against the float64 oracle, one test a numerical regime (numerics.py has the bar)."""

from functools import partial

import pytest
import torch
from forms import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import check, evaluate, generator, gradient_error, projections, value_error
from torch import Tensor

from dogo_fast import functional, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TEMPERATURES = [0.02, 0.05, 0.1, 0.5, 1.0]


def losses(temperature: float, reduction: str = "mean") -> tuple[object, object]:
    return (
        partial(functional.nt_xent, temperature=temperature, reduction=reduction),
        partial(reference.nt_xent, temperature=temperature, reduction=reduction),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_random_projections_at_every_temperature(device: torch.device, temperature: float, dtype: torch.dtype) -> None:
    weights = torch.ones(74, device=device)
    check(*losses(temperature, "none"), projections(37, 24, dtype=dtype, device=device), weights)


@pytest.mark.parametrize(
    ("N", "D"),
    [(2, 1), (3, 16), (64, 64), (65, 63), (70, 128), (9, 130), (5, 257), (6, 1000)],
    ids=lambda size: str(size),
)
def test_ragged_rows_and_widths(device: torch.device, N: int, D: int) -> None:
    check(*losses(0.5), projections(N, D, device=device))


@pytest.mark.parametrize(("D", "dtype"), [(4096, torch.bfloat16), (700, torch.float16), (700, torch.float32)])
def test_rows_wider_than_a_chunk(device: torch.device, D: int, dtype: torch.dtype) -> None:
    """Rows walk chunks of 128 columns (32 of them at D = 4096); all but the first accumulate outside registers."""
    check(*losses(0.2), projections(3, D, dtype=dtype, device=device))


def test_more_rows_than_a_tile_and_more_than_one_column_split(device: torch.device) -> None:
    check(*losses(0.1), projections(150, 32, device=device))


@pytest.mark.parametrize("temperature", [0.01, 10.0])
def test_the_ends_of_the_temperature_range(device: torch.device, temperature: float) -> None:
    check(*losses(temperature), projections(20, 16, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_identical_rows(device: torch.device, temperature: float, dtype: torch.dtype) -> None:
    """Every cosine is 1: the loss is log(2N − 1) and the gradient vanishes."""
    (row,) = projections(1, 32, count=1, dtype=dtype, device=device)
    a = row.repeat(12, 1)
    value, gradients = evaluate(losses(temperature)[0], [a, a])
    assert value_error(value, torch.log(torch.tensor(23.0, dtype=torch.float64))) <= 1e-6
    allowed = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype] / temperature
    assert all(gradient.double().norm() <= allowed for gradient in gradients)


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_one_confident_positive(device: torch.device, temperature: float) -> None:
    """Positives at cosine nearly 1 among far negatives: the loss is a tiny difference of large exponents."""
    a, noise = projections(24, 64, device=device)
    b = torch.cat([a[:1] + 1e-3 * noise[:1], noise[1:]])
    check(*losses(temperature, "none"), [a, b], weights=torch.ones(48, device=device))
    check(*losses(temperature), [a, a + 1e-3 * noise])


def test_zero_rows_are_normalised_as_by_torch(device: torch.device) -> None:
    a, b = projections(12, 20, device=device)
    a[3], b[3], b[7] = 0, 0, 0
    value, gradients = check(*losses(0.5), [a, b])
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


def test_zero_rows_in_half_precision_where_the_dense_formula_is_nan(device: torch.device) -> None:
    """1e-12 is 0 in float16, so F.normalize divides 0 by 0; ours keeps float32 norms. Rows other than the zero one are
    held against the float64 oracle of the same inputs; the zero row's gradient, 1e12 times a direction, overflows."""
    a, b = projections(12, 20, dtype=torch.float16, device=device)
    a[3] = 0
    fused, dense = losses(0.5)
    value, (gradient_a, gradient_b) = evaluate(fused, [a, b])
    oracle, (exact_a, exact_b) = evaluate(dense, [a.double(), b.double()])
    others = [index for index in range(12) if index != 3]
    assert value_error(value, oracle) <= 2**-11
    assert gradient_error(gradient_a[others], exact_a[others]) <= 2**-9
    assert gradient_error(gradient_b, exact_b) <= 2**-9
    assert not gradient_a.isnan().any()


@pytest.mark.parametrize("scale", [1e-20, 1e30])
def test_rows_whose_squares_leave_float32(device: torch.device, scale: float) -> None:
    """1e30² overflows: the value must be that of the unscaled rows. At 1e-20 the norm is below 1e-12, as F.normalize
    clamps."""
    inputs = [scale * tensor for tensor in projections(10, 16, device=device)]
    oracle = reference.nt_xent(*(tensor.double() for tensor in inputs), 0.5)
    assert value_error(functional.nt_xent(*inputs, 0.5), oracle) <= 1e-6


def test_rows_just_shorter_than_the_clamp(device: torch.device) -> None:
    """‖z‖ = 6e-13 is divided by 1e-12, so ẑ has length 0.6, and the gradient keeps its part along ẑ."""
    a, b = projections(12, 20, device=device)
    a[3] *= 6e-13 / a[3].norm()
    check(*losses(0.2), [a, b])


@pytest.mark.parametrize("temperature", [0.04, 0.0072, 0.001])
def test_positives_far_above_every_negative(device: torch.device, temperature: float) -> None:
    """Opposite images, views turned a little: exp((s_pos − m)/τ), m of the negatives, overflows from τ = 0.02 on."""
    a = torch.eye(2, 8, device=device)[:1].repeat(2, 1) * torch.tensor([[1.0], [-1.0]], device=device)
    b = a + 0.1 * torch.eye(2, 8, device=device)[1:]
    value, gradients = check(*losses(temperature), [a, b])
    assert 0 <= value <= 1e-20 and all(gradient.norm() <= 1e-6 for gradient in gradients)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_nan_and_inf_give_a_nan_loss(device: torch.device, bad: float, temperature: float) -> None:
    a, b = projections(10, 16, device=device)
    b[4, 7] = bad
    assert functional.nt_xent(a, b, temperature).isnan()


def test_non_contiguous_inputs(device: torch.device) -> None:
    """A transposed view a and a strided view b."""
    (transposed,) = projections(20, 30, count=1, device=device)
    (strided,) = projections(60, 40, count=1, device=device, seed=1)
    check(*losses(0.3), [transposed.T, strided[::2, ::2]])


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_rows_weighted_each_by_its_own_gradient(device: torch.device, reduction: str, temperature: float) -> None:
    weights = torch.randn(74, generator=generator(5)).to(device) if reduction == "none" else None
    inputs = projections(37, 24, device=device)
    value, _ = check(*losses(temperature, reduction), inputs, weights)
    assert value.shape == ((74,) if reduction == "none" else ())


def test_half_precision_gradients_survive_a_loss_scale(device: torch.device) -> None:
    """GradScaler multiplies upstream gradients by 65536: weights of the second product would overflow float16."""
    inputs = projections(37, 24, dtype=torch.float16, device=device)
    fused, dense = losses(0.5, "none")
    weights = torch.full((74,), 512.0, device=device)
    _, gradients = evaluate(fused, inputs, weights)
    _, exact = evaluate(dense, [tensor.double() for tensor in inputs], weights)
    assert all(gradient_error(ours, theirs) <= 2**-9 for ours, theirs in zip(gradients, exact, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_learnable_temperature_gets_its_gradient(device: torch.device, reduction: str) -> None:
    def fused(a: Tensor, b: Tensor, temperature: Tensor) -> Tensor:
        return functional.nt_xent(a, b, temperature, reduction=reduction)

    def dense(a: Tensor, b: Tensor, temperature: Tensor) -> Tensor:
        return reference.nt_xent(a, b, temperature, reduction=reduction)

    weights = torch.rand(74, generator=generator(5)).to(device) if reduction == "none" else None
    check(fused, dense, [*projections(37, 24, device=device), torch.tensor(0.2, device=device)], weights)


def test_a_temperature_tensor_that_is_not_above_zero_gives_nan(device: torch.device) -> None:
    inputs = projections(10, 16, device=device)
    assert functional.nt_xent(*inputs, torch.tensor(-0.5, device=device)).isnan()


@given(
    N=st.integers(2, 80),
    D=st.integers(1, 140),
    dtype=st.sampled_from(DTYPES),
    temperature=st.floats(0.01, 10.0),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=examples(12), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_shape_dtype_and_temperature(
    device: torch.device, N: int, D: int, dtype: torch.dtype, temperature: float, reduction: str, seed: int
) -> None:
    weights = torch.rand(2 * N, generator=generator(seed)).to(device) if reduction == "none" else None
    inputs = projections(N, D, dtype=dtype, device=device, seed=seed)
    # 1/temperature multiplies the rounding of a cosine, which differs between any two float32 programs
    check(*losses(temperature, reduction), inputs, weights, slack=1e-6 + 2e-8 / temperature)


@pytest.mark.parametrize("temperature", [0.0334, 0.0332, 0.025, 0.01])
def test_opposite_views_under_a_loss_scale(device: torch.device, temperature: float) -> None:
    """Every cosine with a negative is near −1, so 1/l is as large as it gets, and GradScaler multiplies by 65536 more:
    on either side of the switch from the constant shift to the running maximum all gradients stay finite. At 0.01 the
    exponential of a padded key, whose cosine is 0, is infinite beside those of the real ones."""
    a, b = torch.ones(2, 4, device=device), torch.ones(2, 4, device=device)
    a[0] *= -1

    def scaled(function: object, *inputs: Tensor, **options: str) -> Tensor:
        return 65536 * function(*inputs, temperature, **options)  # type: ignore[operator]

    check(partial(scaled, functional.nt_xent), partial(scaled, reference.nt_xent), [a, b])
