"""Paired timing: in every round each contender runs once, one right after the other; ratios are of a round's times.

On a CPU a pass is timed by the clock. On a GPU every contender that allows it is captured, forward, and forward with
backward, once for each of several inputs that together exceed the L2 cache twice (but for the smallest), and CUDA
events time rounds of replays; one that cannot be captured runs in eager, and the record says so. Running out of memory
is a result too.
"""

import contextlib
import ctypes
import functools
import gc
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dogo_fast.measuring import captured, seconds_on_gpu

Loss = Callable[..., Tensor]
Inputs = list[Tensor]
Times = dict[str, list[float]]
"""Of phases or contenders, in every round."""

PHASES = ("forward", "backward", "both")
WARM_SECONDS = 0.2
ROUND_SECONDS, EVENT_SECONDS = 2e-3, 5e-7
"""A round of replays takes at least so long: events are no finer than half a microsecond."""
SHORT_SECONDS, PAUSE_SECONDS = 0.1, 0.02
FEWEST_ROUNDS, MOST_ROUNDS = 5, 60
SHARE_OF_FREE = 0.8
"""Of the memory that is free, what a contender on a CPU may take: asked for more, Linux ends the whole process."""
MOST_SETS = 512
"""Of inputs; at N = 64 in bfloat16 with D = 128 that is 32 MB, which an L2 cache of 50 MB holds."""


@dataclass(frozen=True)
class Contender:
    """Something that is timed: a loss of its inputs, and whether a CUDA graph may hold it.

    ``prepare``: makes the loss when its turn has come, as ``torch.compile`` must, for a shape of its own.
    """

    name: str
    prepare: Callable[[], Loss]
    capturable: bool = True


def differentiate(value: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """Gradients of the inputs that want one."""
    return torch.autograd.grad(value, [x for x in inputs if x.requires_grad])


def seconds(*calls: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Quartiles of how much longer theirs take, round by round."""
    return quartiles([other / own for other, own in zip(theirs, ours, strict=True)])


class OnCPU:
    """Forward and backward by the clock; gradients are made anew.

    Before a short pass there is a pause and a pass that is not timed: torch.compile's code and torch have an OpenMP
    each, whose threads spin for a while when they have nothing to do. Without the pause the whole loss at N = 64 took
    8.8 ms after the others' turns.
    """

    captured = False

    def __init__(self, loss: Loss, sets: list[Inputs], longest: float) -> None:
        self.loss, self.inputs = loss, sets[0]
        _warm(self.round, longest)
        self.short = self.round()["both"] < SHORT_SECONDS

    def settle(self) -> None:
        """What comes right before a round and is not timed."""
        if self.short:
            time.sleep(PAUSE_SECONDS)
            self.round()

    def round(self) -> dict[str, float]:
        """Seconds of each phase."""
        start = time.perf_counter()
        value = self.loss(*self.inputs)
        middle = time.perf_counter()
        differentiate(value, self.inputs)
        end = time.perf_counter()
        return {"forward": middle - start, "backward": end - middle, "both": end - start}


class OnGPU:
    """Rounds of calls between CUDA events, all inputs in rotation; by graph replays where they may be captured.

    Forward, and forward and backward, are timed; the backward is what the second takes more than the first in the same
    round. Alone it would need what a forward left, over and over: torch.compile's code gives those buffers back while
    it runs, and dense at N = 32768 would hold 32 GiB. The graphs share their memory: they run one after the other, and
    nobody reads what they leave.

    Nothing made by an eager pass may live during a capture: the node of a leaf would belong to that pass's stream, and
    the backward's wait for it ends the capture.
    """

    timed = ("forward", "both")

    def __init__(self, loss: Loss, sets: list[Inputs], longest: float, capture: bool) -> None:
        def both(inputs: Inputs) -> None:
            differentiate(loss(*inputs), inputs)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _warm(lambda: seconds(functools.partial(both, sets[0]), stream.synchronize), longest)
        torch.cuda.current_stream().wait_stream(stream)
        give_memory_back()  # the graphs' memory is apart from what was cached
        self.calls: dict[str, list[Callable[[], Any]]] = {
            "forward": [functools.partial(loss, *inputs) for inputs in sets],
            "both": [functools.partial(both, inputs) for inputs in sets],
        }
        self.captured = capture
        if capture:
            try:
                pool = torch.cuda.graph_pool_handle()
                self.calls = {phase: [captured(call, pool) for call in calls] for phase, calls in self.calls.items()}
            except Exception as error:  # whatever a library does that a graph cannot hold; or two pools are too much
                self.captured = False
                warnings.warn(f"not captured, timed in eager: {type(error).__name__}: {error}", stacklevel=2)
        if not self.captured:
            give_memory_back()
        self.places = dict.fromkeys(self.timed, 0)
        self.repeats = dict.fromkeys(self.timed, 1)
        for phase in self.timed:
            once = min(self._time(phase) for _ in range(3))
            self.repeats[phase] = max(1, int(ROUND_SECONDS / max(once, 1e-7)))

    def settle(self) -> None:
        torch.cuda.synchronize()

    def _time(self, phase: str) -> float:
        calls, place, repeats = self.calls[phase], self.places[phase], self.repeats[phase]
        self.places[phase] = place + repeats
        return seconds_on_gpu(calls[each % len(calls)] for each in range(place, place + repeats)) / repeats

    def round(self) -> dict[str, float]:
        forward, both = map(self._time, self.timed)
        return {"forward": forward, "backward": max(both - forward, EVENT_SECONDS), "both": both}


Runner = OnCPU | OnGPU


def give_memory_back() -> None:
    """What nobody holds any more, reference cycles included, to the GPU."""
    gc.collect()
    torch.cuda.empty_cache()


class TooSlow(Exception):
    """A pass takes longer than the grid has time for."""


def _warm(call: Callable[[], Any], longest: float) -> None:
    """Until it has run twice and for some time: compiling, caches, clocks.

    Raises:
        TooSlow: the second call took more than ``longest`` seconds.
    """
    call()
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_SECONDS:
        if (taken := seconds(call)) > longest:
            raise TooSlow(f"one pass takes {taken:.3g} s")


def input_sets(make: Callable[[], Inputs]) -> list[Inputs]:
    """So many inputs that reading one set after the other misses the L2 cache of the GPU; one set on a CPU."""
    sets = [make()]
    device = sets[0][0].device
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        size = sum(x.nbytes for x in sets[0])
        sets += [make() for _ in range(min(MOST_SETS, 1 + 2 * cache // size) - 1)]
    return sets


@dataclass
class Measured:
    """``seconds[name][phase]``: one a round; ``faster_than[name][phase]``: quartiles of how much longer it takes than
    ours in the same round; ``missing[name]``: why it has none."""

    seconds: dict[str, Times] = field(default_factory=dict)
    faster_than: dict[str, Times] = field(default_factory=dict)
    captured: dict[str, bool] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    results: dict[str, list[Tensor]] = field(default_factory=dict)
    """The value and the gradients of each, of the first inputs."""


def measure(benchmark: Any, contenders: Sequence[Contender], make: Callable[[], Inputs], budget: float) -> Measured:
    """Time the contenders against the one that is named "ours", for about ``budget`` seconds of rounds.

    On a CPU all run in every round. On a GPU each runs in rounds with ours alone and gives its memory back before the
    next one comes, or what fits would depend on who came before.

    benchmark: the fixture of pytest-benchmark, whose own columns time ours in some rounds more. A contender is left
    out, and the record says why, where it does not fit the memory, fails, or takes longer than the budget for one pass.
    """
    measured = Measured()
    sets = input_sets(make)
    (first,) = (contender for contender in contenders if contender.name == "ours")
    others = [contender for contender in contenders if contender is not first]
    ours = _prepare(first, sets, float("inf"), measured)
    groups = [[other] for other in others] if sets[0][0].is_cuda else [others]
    all_ours: list[dict[str, float]] = []
    for group in groups:
        found = {contender.name: _prepare_or_note(contender, sets, budget, measured) for contender in group}
        runners = {name: runner for name, runner in found.items() if runner is not None}
        if not runners and len(groups) > 1:
            continue  # nobody to be compared with
        times = _rounds(ours, runners, budget / len(groups))
        all_ours += times["ours"]
        beside = _by_phase(times["ours"])
        for name in runners:
            measured.seconds[name] = _by_phase(times[name])
            measured.faster_than[name] = {p: ratios(measured.seconds[name][p], beside[p]) for p in PHASES}
        del found, runners
        if sets[0][0].is_cuda:
            give_memory_back()
    measured.seconds["ours"] = _by_phase(all_ours or _rounds(ours, {}, budget)["ours"])
    benchmark.pedantic(ours.round, setup=ours.settle, rounds=FEWEST_ROUNDS, iterations=1)
    return measured


def _rounds(ours: Runner, others: dict[str, Runner], budget: float) -> dict[str, list[dict[str, float]]]:
    """In every round each has its turn, ours the last."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in (*others, "ours")}

    def run() -> None:
        for name, runner in (*others.items(), ("ours", ours)):
            runner.settle()
            times[name].append(runner.round())

    length = seconds(run)
    for values in times.values():
        values.clear()
    for _ in range(max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(budget / length)))):
        run()
    return times


def _by_phase(times: list[dict[str, float]]) -> Times:
    return {phase: [each[phase] for each in times] for phase in PHASES}


def _prepare_or_note(contender: Contender, sets: list[Inputs], budget: float, measured: Measured) -> Runner | None:
    try:
        with contextlib.nullcontext() if sets[0][0].is_cuda else _part_of_the_memory():
            return _prepare(contender, sets, budget, measured)
    except TooSlow as error:
        reason = str(error)
    except Exception as error:
        short = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        reason = "out of memory" if short else "failed: " + f"{type(error).__name__}: {error}".splitlines()[0][:200]
    measured.missing[contender.name] = reason
    return None


@contextlib.contextmanager
def _part_of_the_memory() -> Iterator[None]:
    """In it, allocations that go beyond ``SHARE_OF_FREE`` fail."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _field("/proc/self/status", "VmSize") + int(SHARE_OF_FREE * _field("/proc/meminfo", "MemAvailable"))
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def _prepare(contender: Contender, sets: list[Inputs], longest: float, measured: Measured) -> Runner:
    """Warm up; note the value and gradients, and the memory a step takes: on a GPU before graphs take some for good."""
    loss = contender.prepare()
    inputs = sets[0]
    runner: Runner | None = None if inputs[0].is_cuda else OnCPU(loss, sets, longest)
    value = loss(*inputs)
    measured.results[contender.name] = [value.detach(), *differentiate(value, inputs)]
    del value
    peak = _peak_on_cpu if runner else _peak_on_gpu
    measured.memory[contender.name] = peak(lambda: differentiate(loss(*inputs), inputs))
    runner = runner or OnGPU(loss, sets, longest, contender.capturable)
    measured.captured[contender.name] = runner.captured
    return runner


def _peak_on_gpu(step: Callable[[], Any]) -> int:
    """Bytes allocated above what was before, at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(step: Callable[[], Any]) -> int:
    """Bytes by which the resident set grows, at most (Linux): what was freed before counts as used again."""
    ctypes.CDLL(None).malloc_trim(0)
    before = _field("/proc/self/status", "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident set so far
    step()
    return max(0, _field("/proc/self/status", "VmHWM") - before)


def _field(path: str, name: str) -> int:
    """Bytes, of a line as "VmRSS:  1234 kB"."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure_rates(
    benchmark: Any,
    items: int,
    ours: Callable[[], Any],
    others: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    weights: Mapping[str, float] = {},
    warm: int = 2,
) -> dict[str, Any]:
    """What a record has of rates: items a second, so many as a call of ours makes, and how much longer the others take,
    each before ours in every round. ``weights``: by what an other's time counts."""
    times: Times = {name: [] for name in ("ours", *others)}

    def run() -> None:
        times["ours"].append(seconds(ours))

    def run_others() -> None:
        for name, call in others.items():
            times[name].append(seconds(call) * weights.get(name, 1.0))

    for _ in range(warm):
        run_others()
        run()
    for values in times.values():
        values.clear()
    benchmark.pedantic(run, setup=run_others, rounds=rounds, iterations=1)
    return {
        "per_second": {name: quartiles([items / each for each in values]) for name, values in times.items()},
        "faster_than": {name: ratios(times[name], times["ours"]) for name in others},
    }
