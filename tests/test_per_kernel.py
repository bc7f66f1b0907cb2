"""Each kernel's time, work and prediction in a record of a GPU: from made-up events of the profiler to the page."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from dogo_fast.augment import VIEW_RECIPES, Augmentation
from dogo_fast.bench import contenders, losses, per_kernel, records, tables
from dogo_fast.bench.per_kernel import Event, Incomplete, join, predicted_seconds, seconds_by_kernel
from dogo_fast.bench.reports import page
from dogo_fast.bench.test_step import idle_share
from dogo_fast.bench.work import Shape, bound, done
from dogo_fast.ops.backend import interpreting
from dogo_fast.ops.compiling import Case, launches
from dogo_fast.ops.library import LOSSES

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
    assert idle_share(lambda: None, 1) == pytest.approx(1 - 3e-5 / 1.00002)
    Profiler(monkeypatch, [])
    assert idle_share(lambda: None, 1) is None


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
    from dogo_fast.ops import launches as launching

    Profiler(monkeypatch, [])
    (first, *_) = launches(CASE, "sm_90")

    def run() -> None:
        with launching.pretending(launching.Device("sm_90", 132)):
            launching.run(first.kernel, first.grid, *first.arguments, **first.switches)

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


STATIC = {"target": "sm_90", "case": CASE._asdict(), "kernel": "gradient_kernel", "tile": "128x64", "warps": 8}
STATIC |= {"clocks_overlapped": 1.5, "clocks_in_turns": 2.5, "busiest_overlapped": 1 / 100, "busiest_in_turns": 1 / 80}


def test_predictions_are_of_the_same_code() -> None:
    """N² pairs of 1.5 clocks, 4·10¹² / 16 clocks a second of 132 multiprocessors; of these a hundredth, or an eightieth
    in turns, is the busiest one's, or where N or the GPU is another what 256 programs that are alike give it."""
    row = {"kernel": "gradient_kernel", "tile": "128x64", "warps": 8, "programs": 256}
    clock = 4e12 / 16 / 132

    def of(case: Case = CASE, count: int = 132, **changed: Any) -> list[float] | None:
        measured = {"case": case._asdict(), "rates": RATES, "multiprocessors": count}
        return predicted_seconds(row | changed, measured, [STATIC])

    assert of() == pytest.approx([PAIRS * 1.5 / 100 / clock, PAIRS * 2.5 / 80 / clock])
    assert of(CASE._replace(N=8192)) == pytest.approx([4 * PAIRS * each * 2 / 256 / clock for each in (1.5, 2.5)])
    assert of(count=66) == pytest.approx([PAIRS * each * 4 / 256 / (2 * clock) for each in (1.5, 2.5)])
    for other in (of(CASE._replace(D=64)), of(CASE._replace(dtype="float16")), of(tile="64x64"), of(warps=4)):
        assert other is None
    views = Case("augment", "bfloat16", 32, 1024, "cifar")
    static = STATIC | {"case": views._replace(N=256)._asdict(), "clocks_in_turns": None, "busiest_in_turns": None}
    measured = {"case": views._asdict(), "rates": RATES, "multiprocessors": 132}
    found = predicted_seconds(row, measured, [static])
    assert found == pytest.approx([4 * 1024 * 32**2 * 1.5 * 2 / 256 / clock])
    teaching = CASE._replace(loss="similarity_kl")._asdict()
    measured = measured | {"case": teaching}
    assert predicted_seconds(row, measured, [STATIC | {"case": teaching}]) is None


def record_of(kernels: list[dict[str, Any]]) -> records.Record:
    """The recorded run of a CPU as if it were a GPU's, with kernels."""
    path = records.RESULTS / "benchmark-cpu.json"
    cpu = records.load(path)
    gpu = {"name": "Made-up GPU", "driver": "1", "cuda": "13.0", "architecture": "sm_90"}
    infos = [dict(info) for info in cpu.infos]
    for info, each in zip((info for info in infos if info["kind"] == "loss"), kernels, strict=False):
        info |= {"kernels": each, "device": "cuda"}
    return records.Record(path, cpu.machine | {"gpu": gpu}, cpu.grid, cpu.commit, tuple(infos))


def test_the_page_has_each_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roofline-sm_90.json").write_text(json.dumps({"predictions": [STATIC]}))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    recorded = launches(CASE, "sm_90")
    rows = [
        join(name, recorded, [200e-6, 210e-6, 230e-6], CASE, RATES) for name in ("normalize_kernel", "gradient_kernel")
    ]
    measured = {"case": CASE._asdict(), "passes": 3, "rates": RATES, "multiprocessors": 132, "kernels": rows}
    unseen = {"case": CASE._replace(N=64)._asdict(), "unavailable": "Incomplete: none | at all"}
    text = page.write_page([record_of([measured, unseen])], tmp_path / "plots")
    lines = text[text.index("### Kernels on the GPU") :].split("\n")[2:7]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    what = ["dogo_loss, static", "bfloat16", "128", "4096"]
    assert cells[0][4:9] == ["kernel", "tile", "µs", "predicted, µs", "GFLOP"]
    assert cells[2] == [*what, "normalize", "4 warps", "210 (205–220)", "–", "–", "–", "8.45", "2.11", "memory", "1"]
    gradient = ["gradient", "128x64, 8 warps", "210 (205–220)", "133 to 277", "85.9 (51.5)", "268 (101)"]
    assert cells[3][:10] == [*what, *gradient] and cells[3][11:] == ["103", "products", "49"]
    assert cells[4][3:6] == ["64", "unmeasured: Incomplete: none / at all", "–"]
    assert {len(row) for row in cells} == {14} and "unmeasured too" not in text


def test_without_a_gpu_the_page_says_so(tmp_path: Path) -> None:
    cpu = [record for record in records.recorded() if record.device == "cpu"]
    text = page.write_page(cpu, tmp_path)
    assert "The time of each kernel is unmeasured too" in text and "Kernels on the GPU" not in text
