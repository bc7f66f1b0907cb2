"""What only the C++ kernels have: float64, 16-bit products, threads, resuming, memory, processors with less.

The numerical tests of every loss run over them too, by the ``device`` fixture.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import check, check_draws, evaluate, generator, gradient_error, projections, value_error
from torch import Tensor

from dogo_fast import functional, reference
from dogo_fast.ops import cpp_backend

Losses = tuple[Callable[..., Tensor], Callable[..., Tensor]]


def dogo_losses(temperature: float = 0.5, kd_temperature: float = 0.1) -> Losses:
    def loss(function: Any) -> Callable[..., Tensor]:
        return lambda a, b, c, d: function((a, b), (c, d), temperature, kd_temperature, kd_weight=(2.0, 0.5)).loss

    return loss(functional.dogo_loss), loss(reference.dogo_loss)


def kl_losses(temperature: float = 0.1, teacher_temperature: float | None = None) -> Losses:
    def loss(function: Any) -> Callable[..., Tensor]:
        options = {"teacher_temperature": teacher_temperature, "detach_teacher": False}
        return lambda a, b, c, d: function((a, b), (c, d), temperature, **options)

    return loss(functional.similarity_kl), loss(reference.similarity_kl)


def peers(N: int, D_1: int, D_2: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    return [
        *projections(N, D_1, dtype=dtype, seed=seed),
        *projections(N, D_2, dtype=dtype, seed=seed + 1),
    ]


@pytest.mark.parametrize(
    ("dtype", "lowest", "highest", "allowed"), [(torch.float32, -126, 87, 1.1e-7), (torch.float64, -1022, 866, 3e-16)]
)
def test_exp2_to_the_last_bit_over_its_range(
    cpp_device: torch.device, dtype: torch.dtype, lowest: float, highest: float, allowed: float
) -> None:
    """In units of the rounding, 2⁻²⁴ and 2⁻⁵³: 1.3 with fused multiply-add, 1.7 without in float32; 2.7 in float64, the
    comparison's own among them."""
    x = torch.linspace(lowest, highest, 200_001, dtype=dtype)
    y = x.clone()
    cpp_backend.extension.load()
    torch.ops.dogo_fast_cpp.exp2_(y)
    exact = torch.exp2(x.double())
    assert float(((y.double() - exact) / exact).abs().max()) <= allowed
    special = torch.tensor([0.0, 1.0, -1.0, lowest - 50, -torch.inf, torch.nan], dtype=dtype)
    torch.ops.dogo_fast_cpp.exp2_(special)
    assert special[:3].tolist() == [1.0, 2.0, 0.5] and special[5].isnan()
    assert all(0 <= float(value) <= 2.0**lowest for value in special[3:5])


@pytest.mark.parametrize("temperature", [0.002, 0.02, 0.5, 10.0])
@pytest.mark.parametrize("losses", [dogo_losses, kl_losses])
def test_float64_is_as_exact_as_the_oracle(
    cpp_device: torch.device, losses: Callable[..., Losses], temperature: float
) -> None:
    """On either side of the switch to running maxima, which for float64 is at 2/T = 600."""
    fused, dense = losses(temperature, 2 * temperature)
    value, gradients = evaluate(fused, peers(70, 24, 17, torch.float64))
    oracle, exact = evaluate(dense, peers(70, 24, 17, torch.float64))
    assert value.dtype == torch.float64 and value_error(value, oracle) <= 1e-13
    allowed = 1e-13 + 1e-14 / temperature  # a cosine's rounding, 2e-16, summed over D and divided by T
    assert all(gradient_error(ours, theirs) <= allowed for ours, theirs in zip(gradients, exact, strict=True))


def test_gradients_by_finite_differences(cpp_device: torch.device) -> None:
    """Of a peer of the whole loss alone, since its teacher is held constant; of everything in the others."""
    a, b, c, d = (tensor.requires_grad_() for tensor in peers(5, 3, 4, torch.float64))
    tau, T = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.5, 0.3))

    def student(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
        return functional.dogo_loss((a, b), (c.detach(), d.detach()), tau, 0.2, kd_weight=(3.0, 1.0)).loss_1

    def similarity_kl(a: Tensor, b: Tensor, c: Tensor, d: Tensor, tau: Tensor, T: Tensor) -> Tensor:
        options = {"teacher_temperature": T, "detach_teacher": False, "reduction": "none"}
        return functional.similarity_kl((a, b[:4]), (c, d[:4]), tau, **options)

    def nt_xent(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
        return functional.nt_xent(a, b, tau, reduction="none")

    assert torch.autograd.gradcheck(student, (a, b, tau))
    assert torch.autograd.gradcheck(similarity_kl, (a, b, c, d, tau, T))
    assert torch.autograd.gradcheck(nt_xent, (a, b, tau))


def test_one_peer_in_float64_makes_all_sums_float64(cpp_device: torch.device) -> None:
    a, b, c, d = peers(20, 16, 8)
    value, gradients = evaluate(dogo_losses()[0], [a, b, c.double(), d.double()])
    oracle, exact = evaluate(dogo_losses()[1], [tensor.double() for tensor in (a, b, c, d)])
    assert value.dtype == torch.float64 and value_error(value, oracle) <= 1e-13
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2 + [torch.float64] * 2
    assert all(gradient_error(ours, theirs) <= 2**-23 for ours, theirs in zip(gradients, exact, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 4.0, 50.0])
@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_the_gradient_of_a_large_temperature(cpp_device: torch.device, temperature: float, spread: float) -> None:
    """Weights sum to 0 in a row but for their rounding, which must not multiply how far cosines are from 1, nor how far
    from 0 where rows are all alike but for the spread."""

    def loss(function: Any) -> Callable[..., Tensor]:
        return lambda a, b, c, d, T: function((a, b), (c, d), T)

    draws = []
    for seed in range(4):
        rows = peers(128, 64, 64, seed=7 * seed)
        draws.append([tensor[:1] + spread * (tensor - tensor[:1]) if spread < 1 else tensor for tensor in rows])
        draws[-1].append(torch.tensor(temperature))
    check_draws(loss(functional.similarity_kl), loss(reference.similarity_kl), draws)


@pytest.mark.parametrize("temperature", [0.04, 0.1, 0.5])
def test_peers_whose_cosines_differ_by_an_offset(cpp_device: torch.device, temperature: float) -> None:
    """One peer's views point one way, the other's opposite ways: Δ is large, and the same for all keys of a row."""
    draws = []
    for seed in range(4):
        directions, noise, more = torch.randn(3, 128, 16, generator=generator(seed))
        a, b, c, d = (
            directions[:1] + 0.3 * noise,
            directions[:1] + 0.3 * more,
            directions[1:2] + 0.3 * more,
            -directions[1:2],
        )
        draws.append([a, b, c, d + 0.3 * noise])

    def loss(function: Any) -> Callable[..., Tensor]:
        return lambda a, b, c, d: function((a, b), (c, d), temperature, reduction="sum", detach_teacher=False)

    check_draws(loss(functional.similarity_kl), loss(reference.similarity_kl), draws)


@pytest.mark.parametrize("temperature", [0.04, 0.1, 1.0])
def test_distributions_that_are_equal_though_cosines_are_not(cpp_device: torch.device, temperature: float) -> None:
    """A zero query beside keys that are all alike: both are uniform, so value and gradient are 0. So with one key."""
    a, c = torch.randn(2, 5, 8, generator=generator(0))
    (row,) = projections(1, 8, count=1, seed=1)
    a[2] = 0
    for keys in (6, 1):
        value, gradients = evaluate(
            kl_losses(temperature)[0], [a[2:3], torch.randn(keys, 8), c[2:3], row.repeat(keys, 1)]
        )
        assert value == 0 and all(gradient.norm() == 0 for gradient in gradients)


def test_an_upstream_gradient_beyond_float32_is_infinite_not_an_error(cpp_device: torch.device) -> None:
    temperature = torch.tensor(0.01, requires_grad=True)
    a, b = projections(10, 8)
    functional.nt_xent(a, b, temperature).backward(torch.tensor(1e36))
    assert temperature.grad is not None and temperature.grad.isinf()


@pytest.mark.parametrize("temperature", [1e-8, 1e-18, 1e-25])
def test_cosines_summed_in_another_order_at_tiny_temperatures(cpp_device: torch.device, temperature: float) -> None:
    """float64 products are the BLAS's, whose order may change with the threads: a cosine may exceed its maximum."""
    inputs = [tensor.requires_grad_() for tensor in peers(150, 1003, 1003, torch.float64)]
    torch.set_num_threads(1)
    value = dogo_losses(temperature, temperature)[0](*inputs)
    torch.set_num_threads(5)
    gradients = torch.autograd.grad(value, inputs)
    assert all(gradient.norm() <= 10 / temperature for gradient in gradients)


def test_operators_called_with_wrong_sizes_say_so(cpp_device: torch.device) -> None:
    """Past the checks of functional.py; a buffer would be overrun."""
    ops = torch.ops.dogo_fast
    settings = (None, 0.5, "mean", "float32", "cpp")
    a, b = projections(50, 4)
    with pytest.raises(RuntimeError, match="views must have at most 4 columns"):
        ops.nt_xent(a, torch.randn(50, 400), *settings)
    with pytest.raises(RuntimeError, match="views must be a matrix of 50 rows"):
        ops.nt_xent(a, b[:30], *settings)
    value, *saved = ops.nt_xent(a, b, *settings)
    with pytest.raises(RuntimeError, match=r"normalised rows must be a matrix of \d+ rows"):
        ops.nt_xent_backward(value, *saved, *projections(500, 4), *settings)
    with pytest.raises(RuntimeError, match="the gradient must have 100 numbers"):
        ops.nt_xent_backward(torch.ones(7), *saved, a, b, None, 0.5, "none", "float32", "cpp")


def can_multiply_bfloat16() -> bool:
    """Whether oneDNN takes 16-bit operands on this processor, fast (AMX) or not (AVX-512)."""
    return "avx512bw" in open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else False


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="Linux says what the processor is in /proc/cpuinfo")
def test_products_are_made_in_sixteen_bits_by_what_the_processor_is(cpp_device: torch.device) -> None:
    found = Path("/proc/cpuinfo").read_text()
    amx, amd = "amx_bf16" in found, "AuthenticAMD" in found and "avx512_bf16" in found
    assert cpp_backend.fast_bfloat16() == (amx or amd)


@pytest.mark.skipif(not can_multiply_bfloat16(), reason="oneDNN's 16-bit products need AVX-512")
@pytest.mark.parametrize(("N", "D_1", "D_2"), [(2, 1, 3), (65, 63, 200), (300, 128, 64)])
@pytest.mark.parametrize("losses", [dogo_losses, kl_losses])
def test_sixteen_bit_products_as_a_processor_with_amx_makes_them(
    cpp_device: torch.device, monkeypatch: pytest.MonkeyPatch, losses: Callable[[], Losses], N: int, D_1: int, D_2: int
) -> None:
    """oneDNN's AVX-512 kernels take the same calls; the bar is that of the dense formula in bfloat16."""
    inputs = peers(N, D_1, D_2, torch.bfloat16)
    monkeypatch.setattr(cpp_backend, "fast_bfloat16", lambda: False)
    wide, _ = evaluate(losses()[0], inputs)
    monkeypatch.setattr(cpp_backend, "fast_bfloat16", lambda: True)
    value, _ = check(*losses(), inputs)
    assert N == 2 or value != wide, "products were not made in 16 bits"


@pytest.mark.skipif(not can_multiply_bfloat16(), reason="oneDNN's 16-bit products need AVX-512")
def test_autocast_asks_for_sixteen_bit_products_where_they_are_fast(
    cpp_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpp_backend, "fast_bfloat16", lambda: True)
    inputs = peers(40, 16, 16)
    exact, _ = evaluate(dogo_losses()[0], inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradients = evaluate(dogo_losses()[0], inputs)
    assert value.dtype == torch.float32 and value != exact
    assert value_error(value, exact.double()) <= 2**-9  # the rounding of a bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("N", [2, 33, 150, 700])
@pytest.mark.parametrize("losses", [dogo_losses, kl_losses])
def test_every_number_of_threads_is_exact_and_repeats_its_bits(
    cpp_device: torch.device, monkeypatch: pytest.MonkeyPatch, losses: Callable[[], Losses], N: int, threads: int
) -> None:
    """Short spans, so that 700 rows are more of them than threads."""
    monkeypatch.setattr(cpp_backend, "SPAN_ROWS", cpp_backend.LARGEST_BLOCK)
    torch.set_num_threads(threads)
    inputs = peers(N, 24, 17)
    first, first_gradients = check(*losses(), inputs)
    second, second_gradients = evaluate(losses()[0], inputs)
    assert torch.equal(first, second) and all(map(torch.equal, first_gradients, second_gradients))


@given(
    R=st.integers(1, 600),
    C=st.integers(1, 600),
    threads=st.integers(1, 9),
    temperature=st.sampled_from([0.02, 0.1]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_rectangles_of_any_size_on_any_number_of_threads(
    cpp_device: torch.device, R: int, C: int, threads: int, temperature: float, seed: int
) -> None:
    torch.set_num_threads(threads)
    source = generator(seed)
    inputs = [torch.randn(rows, D, generator=source) for D in (7, 12) for rows in (R, C)]
    check(*kl_losses(temperature), inputs, slack=1e-6 + 2e-8 / temperature)


def test_several_python_threads_at_once(cpp_device: torch.device) -> None:
    """Each with problems of its own, forward and backward."""
    problems = [peers(100 + 10 * seed, 24, 17, seed=seed) for seed in range(6)]
    expected = [evaluate(dogo_losses()[0], inputs) for inputs in problems]

    def work(inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        torch.set_num_threads(2)
        return evaluate(dogo_losses()[0], inputs)

    with ThreadPoolExecutor(len(problems)) as pool:
        results = list(pool.map(work, 5 * problems))
    for (value, gradients), (other, other_gradients) in zip(5 * expected, results, strict=True):
        assert torch.equal(value, other) and all(map(torch.equal, gradients, other_gradients))


def test_python_goes_on_while_the_kernels_run(cpp_device: torch.device) -> None:
    inputs = peers(2500, 64, 64)
    turns = 0
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(evaluate, dogo_losses()[0], inputs)
        while not work.done():
            wait([work], timeout=0.001)
            turns += 1
    work.result()
    assert turns > 3


def test_a_large_problem_returns_to_python_in_between_and_can_be_interrupted(
    cpp_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C raises between two calls; what ran before has no effect on what runs after."""
    monkeypatch.setattr(cpp_backend, "SPAN_ROWS", cpp_backend.LARGEST_BLOCK)
    steps: list[int] = []
    interrupt = True
    walk = cpp_backend._walk

    def watched(operator: Any, *arguments: Any) -> None:
        def call(*all_arguments: Any) -> int:
            if interrupt and all_arguments[-1] > 0:
                raise KeyboardInterrupt
            steps.append(all_arguments[-1])
            return int(operator(*all_arguments))

        walk(call, *arguments)

    monkeypatch.setattr(cpp_backend, "_walk", watched)
    inputs = peers(4200, 64, 64)
    with pytest.raises(KeyboardInterrupt):
        evaluate(dogo_losses()[0], inputs)
    interrupt = False
    steps.clear()
    value, _ = evaluate(dogo_losses()[0], inputs)
    assert any(step > 0 for step in steps)
    assert all(earlier < later or later == 0 for earlier, later in itertools.pairwise(steps))
    assert value_error(value, dogo_losses()[1](*(tensor.double() for tensor in inputs))) <= 1e-6


MEMORY = """
import torch
from dogo_fast import functional
torch.set_num_threads(2)

def field(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) // 1024

def step(N, dtype):
    x = [torch.randn(N, 128, dtype=dtype).requires_grad_() for _ in range(4)]
    before = field("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    functional.dogo_loss(x[:2], x[2:], backend="cpp").loss.backward()
    return field("VmHWM") - before

step(256, torch.float32)
print(step(4096, torch.float32), step(4096, torch.bfloat16))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from Linux's /proc")
@pytest.mark.skipif("DOGO_FAST_SANITIZE" in os.environ, reason="a sanitizer needs memory of its own")
def test_memory_at_4096_rows_grows_by_less_than_64_mib(cpp_device: torch.device) -> None:
    """As the kernel counts resident pages, gradients included; the dense formula's similarities alone are 1.1 GiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    growths = [int(text) for text in done.stdout.split()]
    assert all(0 < growth < 64 for growth in growths), growths


PROCESSOR = """
import torch
from dogo_fast import functional, reference
torch.set_num_threads(2)
source = torch.Generator().manual_seed(0)
for dtype, T in [(torch.float32, 0.1), (torch.float32, 0.02), (torch.bfloat16, 0.1), (torch.float64, 0.1)]:
    x = [torch.randn(150, 40, generator=source).to(dtype).requires_grad_() for _ in range(4)]
    y = [tensor.detach().double().requires_grad_() for tensor in x]
    ours = functional.dogo_loss(x[:2], x[2:], 0.5, T, backend="cpp").loss
    exact = reference.dogo_loss(y[:2], y[2:], 0.5, T).loss
    gradients = zip(torch.autograd.grad(ours, x), torch.autograd.grad(exact, y))
    print(float(ours - exact) / float(exact), max(float((g - h).norm() / h.norm()) for g, h in gradients))
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    ],
    ids=["avx2", "default, where oneDNN has no float products"],
)
def test_processors_with_less(cpp_device: torch.device, environment: dict[str, str]) -> None:
    """Float products are oneDNN's where it has them, else the BLAS's; each instruction set is a library of its own."""
    command = [sys.executable, "-c", PROCESSOR]
    done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
    rows = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    allowed = [(1e-6, 2e-6), (1e-6, 5e-6), (1e-5, 2**-8), (1e-13, 1e-12)]
    for (value, gradient), (value_allowed, gradient_allowed) in zip(rows, allowed, strict=True):
        assert abs(value) <= value_allowed and gradient <= gradient_allowed
