"""What only a GPU can show: capture and replay, no synchronisation, launches as the driver counts them, memory,
sanitizer.

The numerical tests run there too: their ``device`` fixture has a variant marked gpu.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from numerics import check, evaluate, projections
from torch import Tensor

from dogo_fast import DoGoLossOutput, functional, reference
from dogo_fast.kernels import configurations
from dogo_fast.ops import tile_tables

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def dogo(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> DoGoLossOutput:
    return functional.dogo_loss((a, b), (c, d), 0.5, 0.1, kd_weight=(2, 0.5))


def inputs_of(N: int, D: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    return [x.requires_grad_() for x in projections(N, D, count=4, dtype=dtype, device="cuda", seed=seed)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "D"), [(256, 128), (130, 60), (2048, 128), (64, 1000)])
def test_a_captured_step_replays_the_eager_bits_on_new_inputs(N: int, D: int, dtype: torch.dtype) -> None:
    static = inputs_of(N, D, dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(dogo(*static).loss, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = dogo(*static)
        gradients = torch.autograd.grad(output.loss, static)
    for seed in (1, 2):
        fresh = inputs_of(N, D, dtype, seed)
        with torch.no_grad():
            for old, new in zip(static, fresh, strict=True):
                old.copy_(new)
        graph.replay()
        expected = dogo(*fresh)
        assert all(map(torch.equal, output, expected))
        assert all(map(torch.equal, gradients, torch.autograd.grad(expected.loss, fresh)))


def losses() -> dict[str, Callable[..., Tensor]]:
    temperature = torch.tensor(0.1, device="cuda", requires_grad=True) if torch.cuda.is_available() else 0.1
    return {
        "dogo_loss": lambda a, b, c, d: dogo(a, b, c, d).loss,
        "nt_xent": lambda a, b, c, d: functional.nt_xent(a, b),
        "similarity_kl": lambda a, b, c, d: functional.similarity_kl((a, b), (c, d), detach_teacher=False),
        "learnt": lambda a, b, c, d: functional.similarity_kl((a, b), (c, d), temperature),
    }


@pytest.mark.parametrize("name", losses())
def test_nothing_waits_for_the_device(name: str) -> None:
    inputs = inputs_of(256, 128)
    loss = losses()[name]
    torch.autograd.grad(loss(*inputs), inputs, allow_unused=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(loss(*inputs), inputs, allow_unused=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("N", [64, 256, 8192])
def test_three_launches_forward_and_two_backward_as_the_profiler_counts(N: int) -> None:
    inputs = inputs_of(N, 128, torch.bfloat16)
    seed = torch.ones((), device="cuda")
    torch.autograd.grad(dogo(*inputs).loss, inputs, seed)
    torch.cuda.synchronize()
    counts = []
    output = dogo(*inputs)
    for step in (lambda: dogo(*inputs), lambda: torch.autograd.grad(output.loss, inputs, seed)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
        events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        counts.append(len(events))
    assert counts[0] <= 3 and counts[1] <= 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "D"), [(256, 128), (3000, 100), (64, 2048)])
def test_two_runs_give_the_same_bits(N: int, D: int, dtype: torch.dtype) -> None:
    inputs = inputs_of(N, D, dtype)
    first, second = ([*dogo(*inputs), *torch.autograd.grad(dogo(*inputs).loss, inputs)] for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(("N", "D"), [(3, 128), (130, 128), (300, 128), (2100, 128), (130, 300)])
def test_the_division_by_squares_computes_the_loss_and_the_same_bits_twenty_times(N: int, D: int) -> None:
    """With the tiles of sm_90, whatever the GPU: groups of one and of several row blocks, a last block beyond the
    padding, and programs that take turns in adding up the values."""

    def fused(*x: Tensor) -> Tensor:
        return functional.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, 0.1, backend="triton").loss

    def dense(*x: Tensor) -> Tensor:
        return reference.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, 0.1).loss

    tiles = configurations.SHIPPED[configurations.Key("sm_90", "bfloat16", 128, 2048)].configuration
    assert tiles.statistics.own_rows and tiles.gradient.own_rows
    inputs = projections(N, D, count=4, dtype=torch.bfloat16, device="cuda")
    with tile_tables.forced(tiles):
        first = check(fused, dense, inputs)
        for _ in range(20):
            value, gradients = evaluate(fused, inputs)
            assert torch.equal(value, first[0]) and all(map(torch.equal, gradients, first[1]))


def test_peak_memory_at_8192_rows_stays_under_eight_times_the_inputs() -> None:
    inputs = inputs_of(8192, 128, torch.bfloat16)
    torch.autograd.grad(dogo(*inputs).loss, inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(dogo(*inputs).loss, inputs)
    growth = torch.cuda.max_memory_allocated() - before
    assert growth < 8 * sum(tensor.nbytes for tensor in inputs)


def test_compute_sanitizer_finds_nothing() -> None:
    """Out-of-bounds and misaligned accesses (memcheck), reads of what nobody wrote (initcheck) are left to the
    numerics."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on the PATH")
    program = (
        "import torch\n"
        "from dogo_fast import functional as F\n"
        "for N, D, dtype in [(130, 60, torch.bfloat16), (33, 300, torch.float32), (257, 128, torch.float16)]:\n"
        "    x = [torch.randn(N, D, device='cuda', dtype=dtype, requires_grad=True) for _ in range(4)]\n"
        "    for T in (0.02, 0.1):\n"
        "        F.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, T).loss.backward()\n"
        "        F.similarity_kl((x[0], x[1][:20]), (x[2], x[3][:20]), T, detach_teacher=False).backward()\n"
        "        F.nt_xent(x[0], x[1], T, reduction='none').sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
