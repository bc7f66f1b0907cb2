"""What is measured of a contender, and in which order, with a GPU that is made up and memory that is told; and what a
record says of the code."""

import contextlib
import subprocess
from collections.abc import Iterator
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


@pytest.mark.parametrize(("gibibytes", "fits"), [(16, True), (18, False)])
def test_what_does_not_fit_is_told_with_the_rule(gibibytes: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 GiB are less than the 21 that are free."""
    monkeypatch.setattr(timing, "_field", lambda path, name: 21 * 2**30)
    contender = timing.Contender("large", lambda: torch.sum, takes=lambda N, D, itemsize: gibibytes * 2.0**30)
    sentence = "does not fit: needs about 18 GiB, more than 0.8 of the 21 that are free"
    assert timing._too_large(contender, [torch.ones(2, 2)]) == (None if fits else sentence)


class OnGPU(torch.Tensor):
    """Says so; it is on the CPU."""

    is_cuda = True


def test_a_step_s_memory_is_measured_before_graphs_take_theirs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 50 bytes above the 100 of the inputs, and more once there are graphs."""
    captures: list[object] = []

    @contextlib.contextmanager
    def capture(graph: Any, pool: Any) -> Iterator[None]:
        captures.append(graph)
        with clock.capture(graph, pool):
            yield

    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 150 + 1000 * len(captures))
    measured, sets = timing.Measured(), [[torch.ones(2).as_subclass(OnGPU).requires_grad_()] for _ in range(3)]
    runner = timing._prepare(timing.Contender("it", lambda: clock.loss), sets, 1.0, measured)
    assert measured.memory == {"it": 50}
    assert runner.captured and len(captures) == 2 * len(sets)


@pytest.mark.parametrize("refuses", [False, True])
def test_no_backward_runs_twice_after_one_forward(clock: Clock, refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile's code gives what its forward left back while its backward runs. Captured and in eager."""
    backwards, grad = 0, torch.autograd.grad

    def grad_once(value: torch.Tensor, *arguments: Any, retain_graph: bool | None = None, **options: Any) -> Any:
        nonlocal backwards
        assert not retain_graph and not options.get("create_graph")
        assert not hasattr(value, "differentiated"), "a second backward"
        value.differentiated = True
        backwards += 1
        clock.now += 2
        return grad(value, *arguments, **options)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a backward that is not torch.autograd.grad's")

    clock.refuses = refuses
    monkeypatch.setattr(timing, "differentiate", DIFFERENTIATE)  # as it is, not the clock's
    monkeypatch.setattr(torch.autograd, "grad", grad_once)
    monkeypatch.setattr(torch.autograd, "backward", refuse)
    with pytest.warns(UserWarning, match="not captured") if refuses else contextlib.nullcontext():
        runner = timing.OnGPU(clock.loss, [[torch.ones(2, requires_grad=True)] for _ in range(3)], 1.0, capture=True)
    backwards_of_rounds = []
    for _ in range(2):
        before = backwards
        runner.settle()
        assert runner.round() == {"forward": 1.0, "backward": 2.0, "both": 3.0}
        backwards_of_rounds.append(backwards - before)
    assert backwards_of_rounds == [runner.repeats["both"] if refuses else 0] * 2
    assert refuses or backwards == 1 + 3  # to warm up, and a capture of each input


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
