"""Each kernel's time and work in a record of a GPU: from made-up events of the profiler to the page."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from dogo_fast.bench import contenders, losses, per_kernel, records
from dogo_fast.bench.per_kernel import Event, Incomplete, join, seconds_by_kernel
from dogo_fast.bench.reports import page
from dogo_fast.bench.test_step import idle_share
from dogo_fast.bench.work import Shape, bound
from dogo_fast.ops.backend import interpreting
from dogo_fast.ops.compiling import KernelCase, launches
from dogo_fast.ops.library import LOSSES
from dogo_fast.pictures import Pictures
from dogo_fast.views import VIEW_RECIPES, Augmentation

RATES = {"gemm": 5e14, "exp2": 4e12, "copy": 4e12}
MACHINE = {"bfloat16": 5e14, "float32": 5e13, "exp2": 4e12, "copy": 4e12}
CASE = KernelCase("dogo_loss", "bfloat16", 128, 4096, "static")
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
    ours = contenders.fused("nt_xent", "triton")
    info = {"loss": "nt_xent", "dtype": "float32", "D": 16, "N": 16, "seconds": {"ours": {"both": [1.0] * 3}}}
    found = losses.kernels(ours, lambda: [torch.randn(16, 16, requires_grad=True) for _ in range(2)], info, MACHINE)
    assert (found["passes"], found["rates"]["gemm"]) == (5, MACHINE["float32"])
    assert [each["kernel"] for each in found["kernels"]] == names
    assert [each["seconds"][1] for each in found["kernels"]] == pytest.approx([90e-6, 100e-6, 110e-6, 120e-6])


@pytest.mark.skipif(not interpreting(), reason="runs the kernels in Triton's interpreter")
def test_views_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 9 images 2 are read, for 4 views each; with a place and an index each."""
    Profiler(monkeypatch, ["augment_kernel"] * 3)
    augmentation = Augmentation([VIEW_RECIPES["cifar"]] * 4, 8, 0, device="cpu", backend="triton")
    images, rows = torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.tensor([4, 5])
    run = functools.partial(augmentation, Pictures.of(images).select(rows), rows)
    found = per_kernel.measure([run] * 3, KernelCase("augment", "bfloat16", 8, 2, "cifar"), MACHINE)
    (kernel,) = found["kernels"]
    own = augmentation.state.nbytes + augmentation.table.nbytes
    moved = 2 * 3 * 64 + 2 * 4 * 8 + 4 * 2 * 3 * 64 * 4 + own
    assert kernel["bound"] == {"memory": moved / MACHINE["copy"]} and kernel["seconds"][1] == pytest.approx(20e-6)


def test_a_profiler_that_sees_or_does_nothing_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from dogo_fast.ops import launches as launching

    Profiler(monkeypatch, [])
    (first, *_) = launches(CASE, "sm_90")

    def run() -> None:
        with launching.pretending(launching.Device("sm_90", 132)):
            launching.run(first.kernel, first.grid, *first.arguments, **first.switches)

    found = per_kernel.measure([run] * 2, CASE, MACHINE)
    reason = "Incomplete: the profiler gave 0 of 2 launches of normalize_kernel"
    assert found == {"case": dataclasses.asdict(CASE), "unavailable": reason}
    monkeypatch.delattr(torch.profiler, "profile")
    assert per_kernel.measure([run], CASE, MACHINE)["unavailable"].startswith("AttributeError: ")


def test_a_kernel_is_joined_with_its_work() -> None:
    """By hand: 24 N² D FLOP, 6 N² exponentials and the views and gradients are needed of the gradient kernel."""
    found = join("gradient_kernel", launches(CASE, "sm_90"), [206e-6] * 5, CASE, RATES)
    least = {"products": 24 * PAIRS * 128 / 5e14, "exponentials": 6 * PAIRS / 4e12, "memory": 8 * 4096 * 128 * 2 / 4e12}
    assert found["bound"] == pytest.approx(least) and found["programs"] == 2 * 32 + 4 * 32
    views = join("normalize_kernel", launches(CASE, "sm_90"), [1e-6] * 5, CASE, RATES)
    assert views["bound"] == pytest.approx({"memory": (8 * 4096 * 128 * 2 + 4 * 4096 * 4) / 4e12})
    assert views["tile"] == ""


@pytest.mark.parametrize("loss", LOSSES)
def test_every_kernel_of_a_loss_has_a_bound(loss: str) -> None:
    case = dataclasses.replace(CASE, loss=loss)
    recorded = launches(case, "sm_90")
    shape = Shape(loss, 4096, 128, 2)
    for each in recorded:
        found = join(each.name, recorded, [1e-3] * 5, case, RATES)
        assert min(found["bound"].values()) > 0
        if each.tile:
            assert found["bound"] == bound(shape, RATES, (per_kernel.PASSES[each.name],))


def record_of(kernels: list[dict[str, Any]], path: Path) -> records.Record:
    """The recorded run of a CPU as if it were a GPU's, with kernels."""
    run = json.loads((records.RESULTS / "benchmark-cpu.json").read_text())
    run["machine_info"]["gpu"] = {"name": "Made-up GPU", "driver": "1", "cuda": "13.0"}
    infos = [each["extra_info"] for each in run["benchmarks"]]
    for info, each in zip((info for info in infos if info["kind"] == "loss"), kernels, strict=False):
        info |= {"kernels": each, "device": "cuda"}
    path.write_text(json.dumps(run))
    return records.load(path)


def test_the_page_has_each_kernel(tmp_path: Path) -> None:
    recorded = launches(CASE, "sm_90")
    rows = [
        join(name, recorded, [200e-6, 210e-6, 230e-6], CASE, RATES) for name in ("normalize_kernel", "gradient_kernel")
    ]
    about = {"case": dataclasses.asdict(CASE)}
    measured = {**about, "passes": 3, "rates": RATES, "multiprocessors": 132, "kernels": rows}
    unseen = {"case": about["case"] | {"N": 64}, "unavailable": "Incomplete: none | at all"}
    text = page.write_page([record_of([measured, unseen], tmp_path / "benchmark-gpu.json")], tmp_path / "plots")
    lines = text[text.index("### Kernels on the GPU") :].split("\n")[2:7]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    what = ["dogo_loss, static", "bfloat16", "128", "4096"]
    assert cells[0][4:] == ["kernel", "tile", "µs", "bound, µs", "limiter", "% of bound"]
    assert cells[2] == [*what, "normalize", "4 warps", "210 (205–220)", "2.11", "memory", "1"]
    gradient = ["gradient", "128x64, 8 warps", "210 (205–220)"]
    assert cells[3] == [*what, *gradient, "103", "products", "49"]
    assert cells[4][3:6] == ["64", "unmeasured: Incomplete: none / at all", "–"]
    assert {len(row) for row in cells} == {10} and "No time has been measured on a GPU yet" not in text


def test_without_a_gpu_the_page_says_so(tmp_path: Path) -> None:
    cpu = [record for record in records.recorded() if record.device == "cpu"]
    text = page.write_page(cpu, tmp_path)
    assert "No time has been measured on a GPU yet" in text and "Kernels on the GPU" not in text
