"""The benchmark of a loss at one size: time of forward, backward and both, value, gradient and memory, all together."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dogo_fast.ops import cpp_backend
from dogo_fast.ops.compiling import KernelCase

from . import contenders, per_kernel
from .grid import BUDGET, WANTED, LossCase, loss_cases
from .timing import FEWEST_ROUNDS, Inputs, Loss, differentiate, input_sets, measure, quartiles

MOST_IMAGES_OF_ORACLE = {"cpu": 1024, "cuda": 4096}
"""Up to this N the errors against float64 are recorded; the dense formula in float64 takes 32 N² bytes a matrix."""
MOST_PASSES = 20
"""In which the kernels are profiled."""

VIEWS = {"dogo_loss": 4, "nt_xent": 2, "similarity_kl": 4}
DIFFERENTIATED = {"dogo_loss": 4, "nt_xent": 2, "similarity_kl": 2}
"""How many of the views get a gradient; the KL's teacher does not."""

Cases = Callable[[str], Iterable[LossCase]]


def suite(loss: str) -> tuple[Cases, Callable[..., None]]:
    """``cases`` of a grid, of both devices, and the test that measures one."""

    def test(benchmark: Any, case: LossCase, grid: str, rates: dict[str, float]) -> None:
        bench_loss(benchmark, loss, case, grid, rates)

    return lambda grid: loss_cases(grid, loss), test


def bench_loss(benchmark: Any, loss: str, case: LossCase, grid: str, rates: dict[str, float]) -> None:
    """Run one case and leave what was measured in the benchmark's ``extra_info``."""
    torch.manual_seed(0)

    def make() -> Inputs:
        dtype = getattr(torch, case.dtype)
        views = [torch.randn(case.N, case.D, dtype=dtype, device=case.device) for _ in range(VIEWS[loss])]
        return [x.requires_grad_(number < DIFFERENTIATED[loss]) for number, x in enumerate(views)]

    first = make()
    rest = iter([first])
    found = contenders.contenders(loss, case.device, WANTED[grid])
    measured = measure(benchmark, found, lambda: next(rest, None) or make(), BUDGET[grid])
    # as which a CPU multiplies 16-bit rows
    narrow = case.device == "cuda" or (case.dtype == "bfloat16" and cpp_backend.fast_bfloat16())
    multiplied = case.dtype if narrow else "float32"
    benchmark.extra_info.update(
        {
            "kind": "loss",
            "loss": loss,
            **case._asdict(),
            "rounds": len(measured.seconds["ours"]["both"]),
            "seconds": {
                name: {phase: quartiles(values) for phase, values in phases.items()}
                for name, phases in measured.seconds.items()
            },
            "faster_than": measured.faster_than,
            "captured": measured.captured,
            "missing": measured.missing,
            "memory_bytes": measured.memory,
            "relative_error": relative_errors(loss, case, first, measured.results),
            "roofline": {"rates": {"gemm": rates[multiplied], "exp2": rates["exp2"], "copy": rates["copy"]}},
        }
    )
    if case.device == "cuda":
        benchmark.extra_info["kernels"] = kernels(found[-1].prepare(), make, benchmark.extra_info, rates)


def kernels(ours: Loss, make: Callable[[], Inputs], info: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    """Each kernel of about a second of passes, over inputs that rotate as those that were timed."""

    def run(inputs: Inputs) -> None:
        differentiate(ours(*inputs), inputs)

    count = max(FEWEST_ROUNDS, min(MOST_PASSES, int(1 / info["seconds"]["ours"]["both"][1])))
    sets = input_sets(make)
    passes = [functools.partial(run, sets[number % len(sets)]) for number in range(count)]
    return per_kernel.measure(passes, KernelCase(info["loss"], info["dtype"], info["D"], info["N"], "static"), rates)


def relative_errors(
    loss: str, case: LossCase, inputs: Inputs, results: dict[str, list[Tensor]]
) -> dict[str, list[float]]:
    """Of the value, and of all gradients together: ‖x − oracle‖ / ‖oracle‖ against the dense formula in float64."""
    if MOST_IMAGES_OF_ORACLE[case.device] < case.N:
        return {}
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    value = contenders.dense(loss)(*exact)
    gradient = _flat(differentiate(value, exact))
    oracle = float(value.detach())
    return {
        name: [
            abs(float(result[0]) - oracle) / abs(oracle),
            float((_flat(result[1:]) - gradient).norm() / gradient.norm()),
        ]
        for name, result in results.items()
    }


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.double().flatten() for x in tensors])
