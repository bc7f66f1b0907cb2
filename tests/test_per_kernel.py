"""Each kernel's time and work in a record of a GPU, from made-up events of the profiler."""

import functools
from typing import Any

import pytest
import torch
from dogo_fast.bench import contenders, losses, per_kernel
from dogo_fast.bench.per_kernel import Event, Incomplete, join, seconds_by_kernel
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from dogo_fast.augment import VIEW_RECIPES, Augmentation
from dogo_fast.compile_report import LOSSES, Case, launches
from dogo_fast.ops.backend import interpreting
from dogo_fast.work import Shape, bound, done

RATES = {"gemm": 5e14, "exp2": 4e12, "copy": 4e12}
MACHINE = {"bfloat16": 5e14, "float32": 5e13, "exp2": 4e12, "copy": 4e12}
CASE = Case("dogo_loss", "bfloat16", 128, 4096, "static")
PAIRS = 4096**2


class Profiler:
    """In the place of torch.profiler.profile: gives events of these kernels, each 10 µs longer than the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
        events = [
            FunctionEvent(0, name, 0, start_us=1e6 * each, end_us=1e6 * each + 10 * (each + 1), device_type=device)
            for each, name in enumerate(names)
            for device in (DeviceType.CUDA, DeviceType.CPU)
        ]
        self.events = lambda: events[::-1]
        monkeypatch.setattr(torch.profiler, "profile", lambda activities: self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *error: Any) -> None:
        pass


def events(*pairs: tuple[str, float]) -> list[Event]:
    return [Event(name, float(start), start + seconds) for start, (name, seconds) in enumerate(pairs)]


def test_events_are_those_of_the_gpu_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    Profiler(monkeypatch, ["one", "two"])
    assert per_kernel.gpu_events(lambda: None) == [("one", 0.0, pytest.approx(1e-5)), ("two", 1.0, 1.00002)]


def test_the_launches_of_a_pass_are_summed_by_kernel() -> None:
    found = events(
        ("one", 0.5), ("two", 0.125), ("Memset", 9.0), ("two", 0.25), ("one", 0.75), ("two", 1.0), ("two", 2.0)
    )
    assert seconds_by_kernel(found, {"one": 1, "two": 2}, 2) == {"one": [0.5, 0.75], "two": [0.375, 3.0]}


def test_lost_launches_are_an_error() -> None:
    for found in ([], events(("one", 1.0)), events(*[("one", 1.0)] * 3)):
        with pytest.raises(Incomplete, match=f"the profiler gave {len(found)} of 2 launches of one"):
            seconds_by_kernel(found, {"one": 1}, 2)
    with pytest.raises(Incomplete, match="a pass launches no kernel of ours"):
        seconds_by_kernel(events(("one", 1.0)), {}, 2)


@pytest.mark.skipif(not interpreting(), reason="runs the kernels in Triton's interpreter")
def test_a_loss_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of four launches each: the gradient takes 40, 80, 120 ... µs."""
    names = ["normalize_kernel", "statistics_kernel", "finalize_kernel", "gradient_kernel"]
    Profiler(monkeypatch, names * 5)
    ours = contenders._ours("nt_xent", "triton")
    info = {"loss": "nt_xent", "dtype": "float32", "D": 16, "N": 16, "seconds": {"ours": {"both": [1.0] * 3}}}
    found = losses.kernels(ours, lambda: [torch.randn(16, 16, requires_grad=True) for _ in range(2)], info, MACHINE)
    assert (found["passes"], found["rates"]["gemm"]) == (5, MACHINE["float32"])
    assert [each["kernel"] for each in found["kernels"]] == names
    assert [each["seconds"][1] for each in found["kernels"]] == pytest.approx([90e-6, 100e-6, 110e-6, 120e-6])


@pytest.mark.skipif(not interpreting(), reason="runs the kernels in Triton's interpreter")
def test_views_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 9 images 2 are read, for 4 views each; their two rows are also their indices."""
    Profiler(monkeypatch, ["augment_kernel"] * 3)
    augmentation = Augmentation([VIEW_RECIPES["cifar"]] * 4, (8, 8), 0, device="cpu", backend="triton")
    images, rows = torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.tensor([4, 5])
    run = functools.partial(augmentation, images, rows, rows)
    found = per_kernel.measure([run] * 3, Case("augment", "bfloat16", 8, 2, "cifar"), MACHINE)
    (kernel,) = found["kernels"]
    own = augmentation.state.nbytes + augmentation.table.nbytes
    assert kernel["run"]["bytes"] == 2 * 3 * 64 + 2 * 8 + 4 * 2 * 3 * 64 * 4 + own
    assert (kernel["limiter"], kernel["seconds"][1]) == ("memory", pytest.approx(20e-6))


def test_a_profiler_that_sees_or_does_nothing_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from dogo_fast.ops import launch

    Profiler(monkeypatch, [])
    monkeypatch.setattr(launch, "run", lambda *arguments, **switches: None)
    (first, *_) = launches(CASE, "sm_90")

    def run() -> None:
        launch.run(first.kernel, first.grid, *first.arguments, **first.switches)

    found = per_kernel.measure([run] * 2, CASE, MACHINE)
    reason = "Incomplete: the profiler gave 0 of 2 launches of normalize_kernel"
    assert found == {"case": CASE._asdict(), "unavailable": reason}
    monkeypatch.delattr(torch.profiler, "profile")
    assert per_kernel.measure([run], CASE, MACHINE)["unavailable"].startswith("AttributeError: ")


def test_a_kernel_is_joined_with_its_work() -> None:
    """By hand: 24 N² D FLOP and 6 N² exponentials are needed of 40 and 16, 103 µs at these rates, half of the time."""
    found = join("gradient_kernel", launches(CASE, "sm_90"), [206.158430208e-6] * 5, CASE, RATES)
    assert found["needed"] == {"flop": 24 * PAIRS * 128, "exponentials": 6 * PAIRS, "bytes": 8 * 4096 * 128 * 2}
    assert (found["run"]["flop"], found["run"]["exponentials"]) == (40 * PAIRS * 128, 16 * PAIRS)
    assert (found["limiter"], found["percent"]) == ("products", pytest.approx(50.0))
    views = join("normalize_kernel", launches(CASE, "sm_90"), [1e-6] * 5, CASE, RATES)
    assert views["run"] == views["needed"] == {"flop": 0, "exponentials": 0, "bytes": 8 * 4096 * 128 * 2 + 4 * 4096 * 4}
    assert (views["limiter"], views["tile"]) == ("memory", "")


@pytest.mark.parametrize("loss", LOSSES)
def test_every_kernel_of_a_loss_has_work(loss: str) -> None:
    case = CASE._replace(loss=loss)
    recorded = launches(case, "sm_90")
    shape = Shape(loss, 4096, (128,) * (1 if loss == "nt_xent" else 2), 2)
    for each in recorded:
        name = each.kernel.__name__
        found = join(name, recorded, [1e-3] * 5, case, RATES)
        assert found["run"]["bytes"] > 0 and found["percent"] > 0
        if each.tile:
            least = bound(shape, RATES, overlap=True, passes=(per_kernel.PASSES[name],))
            assert (found["bound_seconds"], found["limiter"]) == (least.total, least.limiter)
            assert found["run"]["flop"] == done(name, each.values).flop
