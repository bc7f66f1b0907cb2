"""The C++ kernels on the CPU: forward and backward of the whole DoGo loss, in turns with the dense formula and with
torch.compile of it, in one run. pytest-benchmark times ours; the others' times and the ratios are in extra_info.
"""

from typing import Any

import pytest
import torch
from peers import dense, exp_rates, fused, gemm_rate, peak_growth, quartiles, seconds, step, work

from dogo_fast.ops import tiled
from dogo_fast.work import Shape, bound

D = 128
THREADS = 2
ROUNDS = {256: 60, 1024: 30, 4096: 11}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module", autouse=True)
def threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="module")
def rates() -> dict[str, float]:
    """Of the machine, in this run."""
    theirs, ours = exp_rates()
    return {"gemm": gemm_rate(), "torch_exp": theirs, "exp2": ours}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", ROUNDS)
def test_dogo_loss(benchmark: Any, rates: dict[str, float], N: int, dtype: str) -> None:
    inputs = [torch.randn(N, D, dtype=DTYPES[dtype], requires_grad=True) for _ in range(4)]
    compiled = torch.compile(dense)
    others: dict[str, list[float]] = {"dense": [], "compiled": []}
    ours: list[float] = []

    def run_others() -> None:
        others["dense"].append(seconds(lambda: step(dense, inputs)))
        others["compiled"].append(seconds(lambda: step(compiled, inputs)))

    def run() -> None:
        ours.append(seconds(lambda: step(fused, inputs)))

    for _ in range(2):
        run_others()
        run()
    for times in (ours, *others.values()):
        times.clear()
    benchmark.pedantic(run, setup=run_others, rounds=ROUNDS[N], iterations=1)

    flop, exponentials = work(N, D)
    least = bound(Shape("dogo_loss", N, (D, D)), rates).total
    info: dict[str, Any] = {
        "N": N,
        "D": D,
        "dtype": dtype,
        "threads": THREADS,
        "torch": torch.__version__,
        "amx": tiled.has_amx(),
        "seconds": {"fused": quartiles(ours)} | {name: quartiles(times) for name, times in others.items()},
        "faster_than": {
            name: quartiles([other / own for other, own in zip(times, ours, strict=True)])
            for name, times in others.items()
        },
        "roofline": {
            "flop": flop,
            "exponentials": exponentials,
            "rates": rates,
            "bound_seconds": least,
            "percent": 100 * least / quartiles(ours)[1],
        },
        "peak_growth_bytes": {
            name: peak_growth(function, with_compiler, N, D, dtype, THREADS)
            for name, function, with_compiler in (
                ("fused", "fused", False),
                ("dense", "dense", False),
                ("compiled", "dense", True),
            )
        },
    }
    benchmark.extra_info.update(info)
