"""What is measured of a contender, and in which order, with a GPU that is made up and memory that is told; and what a
record says of the code."""

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import test_bench
import torch
from test_bench import Clock

from dogo_fast import measuring
from dogo_fast.bench import timing

clock = test_bench.clock
DIFFERENTIATE = timing.differentiate


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


def test_a_commit_is_dirty_where_sources_were_changed_and_not_where_records_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "__file__", str(tmp_path / "dogo_fast" / "measuring.py"))
    assert measuring.commit() is None  # an installed package

    def git(*words: str) -> str:
        person = ("-c", "user.name=somebody", "-c", "user.email=somebody@localhost")
        return subprocess.run(
            ["git", "-C", tmp_path, *person, *words], check=True, capture_output=True, text=True
        ).stdout

    (tmp_path / "bench" / "results").mkdir(parents=True)
    source, record = tmp_path / "bench" / "suite.py", tmp_path / "bench" / "results" / "benchmark.json"
    source.touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    head = {"id": git("rev-parse", "HEAD").strip(), "time": git("log", "-1", "--format=%cI").strip()}
    record.touch()
    assert measuring.commit() == {**head, "dirty": False}
    source.write_text("changed")
    assert measuring.commit() == {**head, "dirty": True}
    assert measuring.compiler_versions()["commit"] == head["id"] + "+"


def test_what_is_not_installed_has_no_version() -> None:
    assert measuring.version("torch") and measuring.version("no-such-package") is None
