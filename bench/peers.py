"""What the fused losses are measured against, and the rates of the machine they are measured on."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dogo_fast import functional, reference
from dogo_fast.ops import extension
from dogo_fast.work import Shape, needed

Loss = Callable[..., Tensor]


def dense(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The whole DoGo loss by the dense formula, in the dtype of the inputs."""
    return reference.dogo_loss((a, b), (c, d)).loss


def fused(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return functional.dogo_loss((a, b), (c, d), backend="cpp").loss


def step(loss: Loss, inputs: list[Tensor]) -> None:
    """Forward and backward; gradients are made anew."""
    torch.autograd.grad(loss(*inputs), inputs)


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def gemm_rate() -> float:
    """Floating-point operations a second of the machine's own float32 matrix product, on all of torch's threads."""
    a, b = torch.randn(2, 1536, 1536)
    out = torch.empty_like(a)
    best = min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(15))
    return 2 * 1536**3 / best


def exp_rates() -> tuple[float, float]:
    """Exponentials a second on all of torch's threads, within the caches: torch.exp's, and those of csrc/exp2.h."""
    extension.load()
    x = -torch.rand(2**18)
    out = torch.empty_like(x)
    theirs = min(seconds(lambda: torch.exp(x, out=out)) for _ in range(50))
    ours = min(seconds(lambda: torch.ops.dogo_fast_cpp.exp2_(x)) for _ in range(50))
    return x.numel() / theirs, x.numel() / ours


def work(N: int, D: int) -> tuple[int, int]:
    """Floating-point operations of products, and exponentials, that the whole loss takes forward and backward."""
    total = needed(Shape("dogo_loss", N, (D, D)))
    return total.flop, total.exponentials


PEAK = """
import ctypes, sys
sys.path.insert(0, "bench")
import torch
import peers

def field(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

torch.set_num_threads({threads})
loss = getattr(peers, "{name}")
loss = torch.compile(loss) if {compiled} else loss
dtype = torch.{dtype}
for _ in range(2):  # kernels get compiled
    peers.step(loss, [torch.randn({N}, {D}, dtype=dtype, requires_grad=True) for _ in range(4)])
inputs = [torch.randn({N}, {D}, dtype=dtype, requires_grad=True) for _ in range(4)]
ctypes.CDLL(None).malloc_trim(0)  # what was freed counts as used again
before = field("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
peers.step(loss, inputs)
print(field("VmHWM") - before)
"""


def peak_growth(name: str, compiled: bool, N: int, D: int, dtype: str, threads: int) -> int:
    """Bytes by which the resident memory of a process of its own grows above its inputs, at most."""
    program = PEAK.format(name=name, compiled=compiled, N=N, D=D, dtype=dtype, threads=threads)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return int(done.stdout.strip().splitlines()[-1])
