"""The benchmarks: the suite runs, all contenders compute the same thing, records become tables, a page and a check."""

import contextlib
import copy
import functools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import dogo_fast
from dogo_fast.atomic import write_atomically
from dogo_fast.bench import grid, records, tables, timing
from dogo_fast.bench.records import Benchmark, Info, LossInfo, Phases, Quartiles, RatedInfo, Record
from dogo_fast.bench.reports import check, page, plots, roofline
from dogo_fast.cli import main
from dogo_fast.commands import benchmark as command
from dogo_fast.errors import UserError

CASES = {loss: list(grid.loss_cases("short", loss)) for loss in ("dogo_loss", "nt_xent", "similarity_kl")}


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, str]:
    """A record of the smallest grid, made by the command, and what it printed."""
    out = tmp_path_factory.mktemp("bench") / "benchmark-smoke.json"
    command = [sys.executable, "-m", "dogo_fast", "benchmark", "--grid", "smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return records.load(out), done.stdout


def test_the_suite_records_time_value_gradient_and_memory_together(smoke: tuple[Record, str]) -> None:
    record, _ = smoke
    assert {info.kind for info in record.of(Info)} == {"loss", "views", "step", "pretraining", "streaming"}
    for info in record.of(Info):
        assert (info.kernels is not None) == (info.device == "cuda" and info.kind in ("loss", "views"))
    for info in record.of(LossInfo):
        names = set(info.seconds)
        assert {"ours", "dense"} <= names
        assert names | set(info.missing) >= {"ours", *set(grid.WANTED["smoke"]) & {"dense", "authors"}}
        for name in names:
            low, middle, high = info.seconds[name].both
            assert 0 < low <= middle <= high
            assert info.memory_bytes[name] >= 0
        assert min(tables.percents_of_bound(info)) > 0


def test_all_contenders_compute_the_same_value_and_gradients(smoke: tuple[Record, str]) -> None:
    for info in smoke[0].of(LossInfo):
        limit = 1e-5 if info.dtype == "float32" else 3e-2
        assert set(info.relative_error) == set(info.seconds)
        for name, errors in info.relative_error.items():
            assert max(errors) < limit, (info, name, errors)


def test_what_the_machine_has_not_is_skipped_by_name(smoke: tuple[Record, str]) -> None:
    skipped = "the Triton kernels, cuda-N64-D128-bfloat16: no CUDA GPU" in smoke[1]
    assert skipped != torch.cuda.is_available()


def test_a_record_is_shown_as_tables(smoke: tuple[Record, str]) -> None:
    record, printed = smoke
    info = record.of(LossInfo, loss="dogo_loss")[0]
    assert tables.spread(info.seconds["ours"].both, 1e3) in printed
    assert {title for title, _ in tables.sections(record)} >= {*tables.TITLES.values(), "Views", "Training steps"}
    for _, lines in tables.sections(record):
        assert len({line.count("|") for line in lines}) == 1


def test_a_record_becomes_a_page_and_pictures(smoke: tuple[Record, str], tmp_path: Path) -> None:
    text = page.write_page([smoke[0]], tmp_path)
    for title, lines in tables.sections(smoke[0]):
        assert "\n".join([f"### {title}", "", *lines]) in text
    pictures = {path.name for path in tmp_path.iterdir()}
    assert pictures == {f"{name}-smoke.svg" for name in ("time", "memory")}
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    plots.draw_all(smoke[0], tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}, (
        "not the same bits for the same record"
    )


def test_the_page_and_the_readme_are_as_the_records_make_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--check"]) == 0, capsys.readouterr().err


def test_the_check_names_a_plot_that_is_missing_or_superfluous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plots"
    shutil.copytree(page.PLOTS, folder)
    monkeypatch.setattr(page, "PLOTS", folder)
    time_plot, memory_plot = folder / "time-cpu.svg", folder / "memory-cpu.svg"
    intact = time_plot.read_bytes()

    def named() -> set[str]:
        assert page.main(["--check"]) == (1 if changed else 0)
        errors = capsys.readouterr().err
        assert not changed or (errors.startswith("not as the records make it: ") and errors.count("\n") == 1)
        return {path.name for path in (time_plot, memory_plot, folder / "old.svg") if path.name in errors}

    changed = False
    assert named() == set()
    changed = True
    time_plot.unlink()
    assert named() == {"time-cpu.svg"}
    (folder / "old.svg").write_bytes(intact)
    assert named() == {"old.svg", "time-cpu.svg"}


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0"), (0.00123, "0.00123"), (12.345, "12.3"), (1234.5, "1,230"), (106001, "106,000")]
)
def test_numbers_have_three_digits_and_no_exponent(number: float, shown: str) -> None:
    assert tables.number(number) == shown


def test_the_short_grid_has_the_promised_sizes() -> None:
    for device, dtypes, largest in (("cpu", 2, 4096), ("cuda", 3, 262144)):
        cases = [case for case in CASES["dogo_loss"] if case.device == device]
        assert {case.D for case in cases} == {64, 128, 256, 2048}
        assert len({case.dtype for case in cases}) == dtypes and max(case.N for case in cases) == largest
    for name in grid.GRIDS:
        for loss in CASES:
            cases = list(grid.loss_cases(name, loss))
            assert cases and len(set(map(str, cases))) == len(cases)


# What is timed


class Pedantic:
    """As pytest-benchmark's fixture, without the clock."""

    def pedantic(self, run: Any, setup: Any, rounds: int, iterations: int) -> None:
        for _ in range(rounds):
            setup()
            run()


def inputs() -> list[torch.Tensor]:
    return [torch.ones(8, 8, requires_grad=True)]


def measure(*others: timing.Contender, budget: float = 0.1) -> timing.Measured:
    ours = timing.Contender("ours", lambda: lambda x: x.sum())
    return timing.measure(Pedantic(), [ours, *others], inputs, budget)


def test_a_step_s_memory_is_what_it_takes_above_its_inputs() -> None:
    size = 2**26

    def hungry(x: torch.Tensor) -> torch.Tensor:
        return x.sum() + 0 * torch.ones(size // 4).sum()

    measured = measure(timing.Contender("hungry", lambda: hungry), budget=30.0)
    assert 0.99 * size <= measured.memory["hungry"] < 1.2 * size + 2**22
    assert measured.memory["ours"] < 2**22


def test_what_does_not_fit_or_fails_or_takes_too_long_is_a_result() -> None:
    torch_seconds = timing.Contender(
        "slow", lambda: lambda x: (torch.randn(1500, 1500) @ torch.randn(1500, 1500)).sum() + x.sum()
    )
    broken = timing.Contender("broken", lambda: lambda x: x @ torch.ones(3))
    free = int(0.9 * timing._field("/proc/meminfo", "MemAvailable"))  # Linux would give it, and later end the process
    large = timing.Contender("large", lambda: lambda x: x.sum() + 0 * torch.empty(free, dtype=torch.uint8)[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    measured = measure(torch_seconds, large, broken, budget=1e-3)
    assert set(measured.seconds) == {"ours"}
    assert measured.missing["large"] == "out of memory" and resource.getrlimit(resource.RLIMIT_AS) == before
    assert measured.missing["broken"].startswith("failed: RuntimeError: size mismatch")
    assert measured.missing["slow"].startswith("one pass takes ")


def test_ratios_are_of_the_times_of_a_round() -> None:
    """Quartiles of 3, 3 and 4."""
    assert timing.ratios([3.0, 6.0, 16.0], [1.0, 2.0, 4.0]) == [3.0, 3.0, 3.5]


# What counts as slower


ONES = Quartiles(1.0, 1.0, 1.0)


def with_infos(record: Record, infos: Sequence[Info]) -> Record:
    return record.model_copy(update={"benchmarks": [Benchmark.model_construct(extra_info=info) for info in infos]})


def run_with(smoke: tuple[Record, str], factor: float, path: Path = Path("run.json")) -> Record:
    """The record as if ours took so many times as long."""

    def slower(values: Any) -> Any:
        if isinstance(values, Phases):
            return Phases.model_construct(**{phase: slower(each) for phase, each in values})
        return Quartiles(*(each / factor for each in values))

    infos = [
        info.model_copy(update={"faster_than": {name: slower(each) for name, each in info.faster_than.items()}})
        for kind in (LossInfo, RatedInfo)
        for info in smoke[0].of(kind)
    ]
    return with_infos(smoke[0], infos).model_copy(update={"path": path})


FACTORS = (0.97, 0.99, 1.0, 1.01, 1.03)


def before_of(smoke: tuple[Record, str]) -> list[Record]:
    return [run_with(smoke, factor, Path(f"{factor}.json")) for factor in FACTORS]


def test_a_slower_run_is_told_from_noise(smoke: tuple[Record, str]) -> None:
    before = before_of(smoke)
    verdicts = {
        factor: {verdict for *_, verdict in check.compare(run_with(smoke, factor), before)}
        for factor in (1.0, 1.05, 1.15, 0.85)
    }
    assert verdicts == {1.0: {check.SAME}, 1.05: {check.SAME}, 1.15: {check.SLOWER}, 0.85: {check.FASTER}}


def test_the_band_is_four_standard_deviations_of_the_logarithms(smoke: tuple[Record, str]) -> None:
    def band_of(factors: Sequence[float]) -> list[float]:
        """Of some ratio, over its value in the record."""
        runs = [run_with(smoke, math.exp(-factor), Path(f"{factor}.json")) for factor in factors]
        name, band = next(iter(check.bands(runs).items()))
        return [math.log(each / check.ratios(smoke[0])[name]) for each in band]

    deviation = math.sqrt(0.1 / 4)
    wide = 1 - 4 * deviation, 1, 1 + 4 * deviation
    assert band_of((0.8, 0.9, 1.0, 1.1, 1.2)) == pytest.approx(wide)
    assert band_of((0.0, 1e-9, 2e-9, 3e-9, 4e-9)) == pytest.approx((-0.08, 0, 0.08), abs=1e-6)


def test_what_did_not_run_is_not_passed_over(smoke: tuple[Record, str]) -> None:
    before = before_of(smoke)
    record = run_with(smoke, 1.0)
    record = with_infos(record, record.of(Info)[:1])
    assert check.GONE in {verdict for *_, verdict in check.compare(record, before)}


def test_the_check_s_exit_codes(smoke: tuple[Record, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 the same, 1 slower, 2 nothing to compare with; through files, as make bench-check runs it."""
    content = json.loads(smoke[0].path.read_text())

    def write(
        name: str, factor: float, cpu: str | None = None, torch_version: str | None = None, commit: str | None = None
    ) -> str:
        changed = copy.deepcopy(content)
        for case in changed["benchmarks"]:
            faster_than = case["extra_info"]["faster_than"]
            for other, values in faster_than.items():
                phases = values.items() if isinstance(values, dict) else ()
                scaled = {phase: [each / factor for each in quartiles] for phase, quartiles in phases}
                faster_than[other] = scaled or [each / factor for each in values]
        if cpu is not None:
            changed["machine_info"]["cpu"]["brand_raw"] = cpu
        if torch_version is not None:
            changed["machine_info"]["versions"]["torch"] = torch_version
        if commit is not None:
            changed["commit_info"]["id"] = commit
        (tmp_path / name).write_text(json.dumps(changed))
        return str(tmp_path / name)

    runs = [write(f"{number}.json", factor) for number, factor in enumerate(FACTORS)]
    assert check.main([write("same.json", 1.01), *runs]) == 0
    assert check.main([write("slow.json", 1.3), *runs]) == 1
    assert "SLOWER" in capsys.readouterr().out
    assert check.main([write("elsewhere.json", 1.0, cpu="another"), *runs]) == (0 if smoke[0].device == "cuda" else 2)
    capsys.readouterr()

    def refused(*paths: str) -> str:
        assert check.main(paths) == 2
        return capsys.readouterr().err

    assert "'torch': '99.0'" in refused(write("newer.json", 1.0, torch_version="99.0"), *runs)
    assert "at least 5 runs before must be given, got 4" in refused(runs[0], *runs[:4])
    assert "at least 5 runs before must be given, got 1" in refused(*[runs[0]] * 6)
    assert "another commit" in refused(*runs, write("later.json", 1.0, commit="other"))
    assert "nan.json is damaged" in refused(write("nan.json", math.nan), *runs)
    (tmp_path / "half.json").write_text(Path(runs[0]).read_text()[:1000])
    assert "half.json is not a record of the benchmarks" in refused(str(tmp_path / "half.json"), *runs)


def run_smoke(out: Path, **options: Any) -> None:
    command.benchmark(command.BenchmarkConfig(grid="smoke", out=out, **options))


def test_the_command_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dogo_fast",
        "benchmark",
        "--grid",
        "smoke",
        "--out",
        str(tmp_path / "no" / "x.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"dogo-fast: error: --out must be a file in a folder that exists, got {tmp_path}/no/x.json\n"


def test_what_is_no_file_is_not_replaced_and_a_link_is_followed(tmp_path: Path) -> None:
    pipe, file, link = tmp_path / "pipe", tmp_path / "file", tmp_path / "link"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="it is not a file"):
        write_atomically(pipe, b"record")
    with pytest.raises(UserError, match="`out` must be a file"):
        run_smoke(pipe)
    assert pipe.is_fifo()
    file.write_bytes(b"before")
    link.symlink_to(file)
    write_atomically(link, b"after")
    assert link.is_symlink() and file.read_bytes() == b"after"


def test_what_was_measured_before_a_benchmark_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "benchmark-gpu.json"
    out.write_text("{}")

    def fail(suite: Sequence[str], environment: Mapping[str, str]) -> int:
        (place,) = (option for option in suite if option.startswith("--record="))
        Path(place.partition("=")[2]).write_text("measured")
        return 1

    monkeypatch.setattr(command, "run_in_group", fail)
    with pytest.raises(UserError, match=r"benchmark-gpu-incomplete\.json"):
        run_smoke(out)
    assert out.read_text() == "{}"
    assert (tmp_path / "benchmark-gpu-incomplete.json").read_text() == "measured"


def test_what_was_measured_before_a_kill_is_a_record(tmp_path: Path) -> None:
    """Killed without a warning, after its first case; the suite ends with it, and a second run takes over."""
    out, incomplete = tmp_path / "benchmark.json", tmp_path / "benchmark-incomplete.json"
    command = [sys.executable, "-m", "dogo_fast", "benchmark", "--grid", "smoke", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        (suite,) = wait_until(lambda: children(process.pid, "pytest"))
        assert wait_until(incomplete.exists)
        with pytest.raises(UserError, match=r"benchmark\.json is being written by another process"):
            run_smoke(out)
        process.kill()
    assert wait_until(lambda: not command_line(suite), seconds=10)
    record = records.load(incomplete)
    assert record.of(LossInfo)[0].loss == "dogo_loss" and len(record.of(Info)) < 6
    assert tables.sections(record) and not out.exists()
    kept = incomplete.read_bytes()
    (tmp_path / ".benchmark-incomplete.json.0.partial").touch()  # as a kill while it is written leaves
    with pytest.raises(UserError, match="nothing was measured"):
        run_smoke(out, minutes=1e-9)
    assert incomplete.read_bytes() == kept and [path.name for path in tmp_path.iterdir()] == [incomplete.name]


def test_a_record_that_is_not_whole_is_not_the_page_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("benchmark-cpu.json", "benchmark-cpu-incomplete.json"):
        shutil.copy(records.RESULTS / "benchmark-cpu.json", tmp_path / name)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert [record.path.name for record in records.recorded()] == ["benchmark-cpu.json"]


def test_what_cannot_be_written_ends_the_suite_after_its_first_case(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"{225 * 'x'}.json"  # no room for more in a name
    with pytest.raises(UserError, match="the benchmarks failed"):
        run_smoke(out)
    printed = capfd.readouterr()
    assert "cannot be written (File name too long)" in printed.out + printed.err and "6 passed" not in printed.out
    assert not list(tmp_path.iterdir())
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(UserError, match="a link that leads nowhere"):
        run_smoke(tmp_path / "loop.json")


def test_settings_of_pytest_around_the_suite_do_not_count(tmp_path: Path) -> None:
    """As of a project whose virtual environment the suite is installed in."""
    folder = tmp_path / "dogo_fast" / "bench"
    left_out = shutil.ignore_patterns("results", "__pycache__", "_extension")
    shutil.copytree(Path(dogo_fast.__file__).parent, folder.parent, ignore=left_out)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -k nothing\n")
    (tmp_path / "scratch").mkdir()
    suite = command._suite(
        folder, tmp_path / "scratch", tmp_path / "record.json", command.BenchmarkConfig(grid="smoke")
    )
    suite = [each for each in suite if not each.startswith("--parent")] + ["--collect-only"]
    done = subprocess.run(suite, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "14 tests collected" in done.stdout, done.stdout + done.stderr


def test_what_the_minutes_do_not_suffice_for_is_skipped_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="nothing was measured: every case was skipped"):
        run_smoke(tmp_path / "benchmark.json", only=("nt_xent",), minutes=1e-9)
    assert "test_nt_xent[cpu-N64-D128-float32]: --minutes 1e-09 are over" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(["benchmark", "--grid", "smoke", "--minutes", "nan"]) == 2
    assert "--minutes must be a finite number above 0, got nan" in capfd.readouterr().err


def test_every_suite_that_is_named_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are named together or one after the other."""
    seen: list[command.BenchmarkConfig] = []
    monkeypatch.setattr(command, "benchmark", seen.append)
    assert main(["benchmark", "--only", "nt_xent", "--only=augment"]) == 0
    assert main(["benchmark", "--only", "nt_xent", "augment", "--grid", "check"]) == 0
    assert [each.only for each in seen] == 2 * [("nt_xent", "augment")] and seen[1].grid == "check"


def test_what_the_project_is_for_is_measured_first(smoke: tuple[Record, str]) -> None:
    kinds = [getattr(info, "loss", info.kind) for info in smoke[0].of(Info)]
    assert kinds == ["dogo_loss", "step", "views", "pretraining", "nt_xent", "similarity_kl", "streaming"]


def test_the_aims_have_what_the_machine_code_says() -> None:
    static = roofline.load_report(records.RESULTS / "roofline-sm_90.json")
    (aim,) = [row for row in page.aims(static) if "25 µs" in row]
    of_256 = [
        each for each in static.predictions if (each.case.D, each.case.N, each.case.loss) == (128, 256, "dogo_loss")
    ]
    statistics, gradient = (each for each in of_256 if each.shares)
    assert statistics.clocks_needed and statistics.clocks_overlapped
    assert gradient.clocks_needed and gradient.clocks_overlapped
    needed = statistics.clocks_needed + gradient.clocks_needed
    percent = 100 * needed / (statistics.clocks_overlapped + gradient.clocks_overlapped)
    assert f"to {percent:.0f} % of the bound, limited by shared memory" in aim


# What ends it


def command_line(process: int) -> str:
    """Empty for one that has ended, waited for or not."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def group_of(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return None


def members(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    running = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [process for process in running if group_of(process) == group and command_line(process)]


def children(process: int, words: str) -> list[int]:
    """Those whose command line has these words."""
    found = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return [child for child in found if words in command_line(child)]


def wait_until(happened: Callable[[], Any], seconds: float = 100) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := happened()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def heard(number: int) -> Callable[[], Any]:
    """For a process that starts: the signal is not ignored, though it be here, as under nohup or in the background."""
    return functools.partial(signal.signal, number, signal.SIG_DFL)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.whole) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_ends_the_command_and_the_suite_it_started(number: signal.Signals, tmp_path: Path) -> None:
    """Sent to the command alone, as a queue does."""
    out = tmp_path / "out" / "benchmark.json"
    out.parent.mkdir()
    out.write_text("an earlier record")
    command = [sys.executable, "-m", "dogo_fast", "benchmark", "--grid", "smoke", "--out", str(out)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=said, preexec_fn=heard(number)
        ) as process,
    ):
        (suite,) = wait_until(lambda: children(process.pid, "pytest"))
        process.send_signal(number)
        assert process.wait(timeout=100) == 128 + number
    try:
        assert wait_until(lambda: not command_line(suite), seconds=10)
    finally:
        if command_line(suite):
            os.kill(suite, signal.SIGKILL)
    errors = (tmp_path / "said").read_text()
    assert errors.endswith(f"dogo-fast: stopped by {number.name}; nothing was recorded\n")
    assert out.read_text() == "an earlier record" and [path.name for path in out.parent.iterdir()] == [out.name]
    assert not list((tmp_path / "scratch").glob("*/record.json"))


def test_what_the_suite_started_ends_with_it_though_it_does_not_listen(tmp_path: Path) -> None:
    deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print(flush=True); time.sleep(60)"
    program = (
        "import pathlib, subprocess, sys, time\n"
        f"each = subprocess.Popen([sys.executable, '-c', {deaf!r}], stdout=subprocess.PIPE)\n"
        "each.stdout.readline()\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "time.sleep(60)"
    )
    outer = (
        "import sys; from dogo_fast.commands.benchmark import *\n"
        f"run_in_group([sys.executable, '-c', {program!r}], {{}})"
    )
    outer_command = [sys.executable, "-c", outer]
    with subprocess.Popen(
        outer_command, stderr=subprocess.PIPE, text=True, preexec_fn=heard(signal.SIGTERM)
    ) as process:
        assert wait_until((tmp_path / "up").exists)
        (group,) = children(process.pid, "pathlib")
        assert len(members(group)) == 2
        process.terminate()
        _, errors = process.communicate(timeout=100)
    assert errors.endswith("StoppedBySignal: stopped by SIGTERM; nothing was recorded\n")
    assert wait_until(lambda: not members(group), seconds=10)


def test_under_nohup_a_benchmark_goes_on_when_the_terminal_goes(tmp_path: Path) -> None:
    up, on = tmp_path / "up", tmp_path / "on"
    program = (
        f"import os, pathlib, signal, time; pathlib.Path({str(up)!r}).touch()\n"
        f"while not pathlib.Path({str(on)!r}).exists(): time.sleep(0.02)"
    )
    outer = (
        "import sys; from dogo_fast.commands.benchmark import *\n"
        f"sys.exit(40 + run_in_group([sys.executable, '-c', {program!r}], {{}}))"
    )
    nohup = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    with subprocess.Popen([sys.executable, "-c", outer], preexec_fn=nohup) as process:
        assert wait_until(up.exists)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        on.touch()
        assert process.wait(timeout=60) == 40


class Clock:
    """A GPU without one: time goes on by what a call says that it takes, and by as much when a graph replays it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.values: list[weakref.ref[Tensor]] = []
        self.refuses = False

    def loss(self, x: Tensor) -> Tensor:
        self.now += 1
        value = (x * x).sum()
        self.values.append(weakref.ref(value))
        return value

    def differentiate(self, value: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        self.now += 2
        return torch.autograd.grad(value, inputs)

    @contextlib.contextmanager
    def capture(self, graph: Any, pool: Any) -> Iterator[None]:
        assert all(value() is None for value in self.values), "an eager pass is alive"
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        start = self.now
        yield
        taken = self.now - start
        graph.replay = lambda: setattr(self, "now", self.now + taken)

    def event(self, enable_timing: bool) -> Any:
        made = mock.MagicMock()
        made.record = lambda: setattr(made, "at", self.now)
        made.elapsed_time = lambda end: 1e3 * (end.at - made.at)
        return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("Stream", "current_stream", "synchronize", "graph_pool_handle", "CUDAGraph", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", clock.capture)
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    monkeypatch.setattr(timing, "differentiate", clock.differentiate)
    monkeypatch.setattr(timing, "WARM_SECONDS", 0.0)
    return clock


@pytest.mark.parametrize("refuses", [False, True])
def test_a_gpu_s_passes_are_captured_with_nothing_of_an_eager_one_alive(clock: Clock, refuses: bool) -> None:
    """A leaf's node that an eager pass keeps alive would end the capture of the backward. One that is refused runs in
    eager, and says so."""
    clock.refuses = refuses
    sets = [[torch.ones(2, requires_grad=True)] for _ in range(3)]
    with pytest.warns(UserWarning, match="not captured") if refuses else contextlib.nullcontext():
        runner = timing.OnGPU(clock.loss, sets, 1.0, capture=True)
    called = len(clock.values)
    assert runner.captured == (not refuses)
    assert runner.round() == {"forward": 1.0, "backward": 2.0, "both": 3.0}
    assert (len(clock.values) == called) == runner.captured
