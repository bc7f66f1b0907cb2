"""What is measured of a contender, and in which order: with a GPU that is made up and memory that is told."""

import contextlib
from typing import Any

import pytest
import test_bench
import torch
from test_bench import Clock

from dogo_fast.bench import timing

clock = test_bench.clock
DIFFERENTIATE = timing.differentiate


@pytest.mark.parametrize(("gibibytes", "fits"), [(16, True), (18, False)])
def test_what_does_not_fit_is_told_with_the_rule(gibibytes: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 GiB are less than the 21 that are free."""
    monkeypatch.setattr(timing, "_field", lambda path, name: 21 * 2**30)
    contender = timing.Contender("large", lambda: torch.sum, takes=lambda N, D, itemsize: gibibytes * 2.0**30)
    sentence = "does not fit: needs about 18 GiB, more than 0.8 of the 21 that are free"
    assert timing._too_large(contender, [torch.ones(2, 2)]) == (None if fits else sentence)


@pytest.mark.gpu
def test_a_captured_step_s_memory_is_what_it_takes_above_its_inputs() -> None:
    """Whatever its graphs hold for good."""
    size = 2**26

    def hungry(x: torch.Tensor) -> torch.Tensor:
        return x.sum() + 0 * torch.ones(size // 4, device=x.device).sum()

    measured, sets = timing.Measured(), [[torch.ones(2, device="cuda", requires_grad=True)] for _ in range(3)]
    runners = [timing._prepare(timing.Contender(name, lambda: hungry), sets, 1.0, measured) for name in ("one", "two")]
    assert all(runner.captured for runner in runners) and measured.memory["one"] == measured.memory["two"]
    assert size <= measured.memory["one"] < 1.2 * size + 2**22


@pytest.mark.parametrize("refuses", [False, True])
def test_no_backward_runs_twice_after_one_forward(clock: Clock, refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile's code gives what its forward left back while its backward runs. Captured and in eager."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
            context.used = False
            return value.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            assert not context.used, "a second backward"
            context.used = True
            clock.now += 2
            return gradient

    clock.refuses = refuses
    monkeypatch.setattr(timing, "differentiate", DIFFERENTIATE)  # as it is, not the clock's
    sets = [[torch.ones(2, requires_grad=True)] for _ in range(3)]
    with pytest.warns(UserWarning, match="not captured") if refuses else contextlib.nullcontext():
        runner = timing.OnGPU(lambda x: Once.apply(clock.loss(x)), sets, 1.0, capture=True)
    for _ in range(2):
        runner.settle()
        assert runner.round() == {"forward": 1.0, "backward": 2.0, "both": 3.0}
