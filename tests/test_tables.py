"""The tables of damaged records: one line that names the file and what is wrong in it, never a traceback."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dogo_fast.bench import records, tables

KERNEL = {
    "kernel": "gradient_kernel",
    "tile": "64x32",
    "warps": 4,
    "programs": 64,
    "seconds": [1e-5, 2e-5, 3e-5],
    "bound": {"products": 1e-5, "exponentials": 5e-6, "memory": 1e-7},
}
CASE = {"loss": "dogo_loss", "dtype": "bfloat16", "D": 128, "N": 256, "variant": "static"}
RATES = {"gemm": 5e14, "exp2": 4e12, "copy": 4e12}
KINDS = ("loss", "views", "step", "pretraining")


@pytest.fixture
def content() -> dict[str, Any]:
    """The recorded run of a CPU with one benchmark of a kind, as if it were a GPU's, with kernels."""
    run = json.loads((records.RESULTS / "benchmark-cpu.json").read_text())
    by_kind = {each["extra_info"]["kind"]: each for each in reversed(run["benchmarks"])}
    assert set(by_kind) == set(KINDS)
    run["benchmarks"] = [{"extra_info": each["extra_info"]} for each in by_kind.values()]
    run["machine_info"]["gpu"] = {"name": "Made-up GPU", "driver": "1", "cuda": "13.0"}
    for info in (each["extra_info"] for each in run["benchmarks"]):
        info["device"] = "cuda"
    by_kind["loss"]["extra_info"]["kernels"] = {
        "case": CASE, "passes": 3, "rates": RATES, "multiprocessors": 132, "kernels": [KERNEL],
    }  # fmt: skip
    by_kind["views"]["extra_info"]["kernels"] = {"case": CASE, "unavailable": "Incomplete"}
    by_kind["step"]["extra_info"]["gpu_idle_share"] = 0.1
    return copy.deepcopy(run)


def info_of(run: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = (each["extra_info"] for each in run["benchmarks"] if each["extra_info"]["kind"] == kind)
    return found


def damage(run: dict[str, Any], kind: str, path: str, value: Any = None) -> None:
    """Set a field below a benchmark's own, or remove it."""
    *above, last = path.split(".")
    place = info_of(run, kind)
    for name in above:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value


def show(run: dict[str, Any], path: Path) -> int:
    path.write_text(json.dumps(run))
    return tables.main([str(path)])


def test_a_whole_record_is_shown(content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(content, tmp_path / "run.json") == 0
    printed = capsys.readouterr().out
    assert "Kernels on the GPU" in printed and "Shares of an eager step" in printed


@pytest.mark.parametrize(
    ("kind", "path", "value", "where", "words"),
    [
        ("loss", "roofline", None, "roofline.rates", ["required"]),
        ("loss", "memory_bytes.ours", "3", "memory_bytes.ours", ["number, got '3'"]),
        ("loss", "memory_bytes.ours", None, "memory_bytes", ["must have 'ours'"]),
        ("loss", "device", "tpu", "device", ["'cpu' or 'cuda', got 'tpu'"]),
        ("loss", "dtype", "int8", "dtype", ["'float32', 'bfloat16' or 'float16', got 'int8'"]),
        ("loss", "N", 0, "N", ["greater than or equal to 1, got 0"]),
        ("loss", "N", True, "N", ["integer, got True"]),
        ("loss", "seconds.ours.both", [0, 0, 0], "seconds.ours.both[0]", ["greater than 0, got 0"]),
        ("loss", "seconds.ours.both", [1, "2", 3], "seconds.ours.both[1]", ["number, got '2'"]),
        ("loss", "faster_than.dense.both", [1, 2], "faster_than.dense.both[2]", ["required", "got [1, 2]"]),
        ("loss", "roofline.rates.exp2", math.inf, "roofline.rates.exp2", ["finite number, got inf"]),
        ("loss", "kernels.kernels", [KERNEL | {"seconds": 1}], "kernels.kernels[0].seconds", ["array", "got 1"]),
        ("loss", "kernels.case.variant", None, "kernels.case.variant", ["required"]),
        ("views", "per_second.ours", [1, 2, math.nan], "per_second.ours[2]", ["finite number, got nan"]),
        ("views", "recipe", ["cifar"], "recipe", ["string, got ['cifar']"]),
        ("step", "phase_shares.backward", [1, 2], "phase_shares.backward[2]", ["required", "got [1, 2]"]),
        ("step", "gpu_idle_share", "10 %", "gpu_idle_share", ["number, got '10 %'"]),
        ("pretraining", "images", 2.5, "images", ["integer, got 2.5"]),
    ],
)
def test_a_damaged_field_is_named(
    content: dict[str, Any],
    kind: str,
    path: str,
    value: Any,
    where: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(content, kind, path, value)
    number = [each["extra_info"]["kind"] for each in content["benchmarks"]].index(kind)
    assert show(content, tmp_path / "run.json") == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    field = f"benchmarks[{number}].extra_info.{where}".rstrip(".")
    assert error.startswith(f"{tmp_path / 'run.json'} is damaged, {field}: "), error
    assert all(each in error for each in words), error


def test_what_ran_on_a_gpu_says_on_which(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del content["machine_info"]["gpu"]
    assert show(content, tmp_path / "run.json") == 2
    assert "run.json is damaged: Value error, machine_info must have 'gpu'" in capsys.readouterr().err


def places(value: Any) -> Iterator[Callable[[Any], None]]:
    """Setters of everything within a value; of None they remove."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in list(inside):
        yield lambda new, name=name: value.__setitem__(name, new) if new is not None else value.__delitem__(name)
        yield from places(each)


@pytest.mark.parametrize("part", [*KINDS, "machine_info", "commit_info"])
@pytest.mark.parametrize(
    "value", [None, 0, -1, 2.5, math.nan, 10**400, "x", [], {}, True], ids=lambda each: repr(each)[:4]
)
def test_whatever_is_damaged_is_shown_or_one_line(
    content: dict[str, Any], part: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a kind of benchmark, or of what a record says of the run."""

    def damaged(run: dict[str, Any]) -> Any:
        return run[part] if part in run else info_of(run, part)

    if part in KINDS:
        content["benchmarks"] = [each for each in content["benchmarks"] if each["extra_info"]["kind"] == part]
    content["machine_info"]["cpu"]["flags"] = ["avx2"]
    whole = json.dumps(content)
    for number in range(len(list(places(damaged(content))))):
        run = json.loads(whole)
        list(places(damaged(run)))[number](value)
        code = show(run, tmp_path / "run.json")
        out, error = capsys.readouterr()
        assert (code, bool(out), error.count("\n")) in ((0, True, 0), (2, False, 1)), error


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"benchmarks": 3}'])
def test_what_is_no_record_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(text)
    assert tables.main([str(tmp_path / "run.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path / 'run.json'} is not a record of the benchmarks: ") and error.count("\n") == 1
