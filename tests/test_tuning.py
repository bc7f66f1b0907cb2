"""The search for tiles: with a compiler and a clock that are made up, and on a GPU with the real ones."""

import concurrent.futures
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import projections

from dogo_fast import functional
from dogo_fast.cli import main
from dogo_fast.commands.tune import TuneConfig, merge, tune
from dogo_fast.errors import UserError
from dogo_fast.kernels import configurations
from dogo_fast.kernels.configurations import (
    ANY,
    ROWS,
    SHIPPED,
    WIDE,
    WIDTHS,
    Configuration,
    Entry,
    Key,
    Tile,
    read_table,
)
from dogo_fast.ops import tile_tables
from dogo_fast.tuning import compiling, timing
from dogo_fast.tuning.compiling import SHARED_LIMITS, static_search
from dogo_fast.tuning.search import (
    MARGIN,
    OTHERS,
    DefaultFailed,
    Outcome,
    Run,
    Tools,
    TunedSize,
    all_tiles,
    candidates,
    choose,
    distance,
)

pytestmark = pytest.mark.usefixtures("no_user_table")
SIZE = TunedSize("bfloat16", 128, 256)
DEFAULT = Configuration(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2))
BEST = Tile(64, 32, 8, 2)
MACHINE = {"gpu": "none", "driver": "1.2.3", "torch": "2", "triton": "3"}


class Bench:
    """A compiler and a clock: ``speeds`` of tiles relative to all others, with noise of 1 %; 0 for one that fails."""

    def __init__(self, speeds: dict[Tile, float], outcomes: Callable[[Tile, tuple[str, str]], Outcome] | None = None):
        self.speeds = speeds
        self.outcomes = outcomes or (lambda tile, what: Outcome(1000, 100, 0))
        self.random = random.Random(0)
        self.lines: list[str] = []
        self.timed: set[Configuration] = set()

    def compile(self, size: TunedSize, kernel: str, tiles: Sequence[Tile], what: tuple[str, str]) -> list[Outcome]:
        return [self.outcomes(tile, what) for tile in tiles]

    def time(self, size: TunedSize, kernel: str, tried: Sequence[Configuration], rounds: int) -> list[Run]:
        self.timed.update(tried)
        speeds = [self.speeds.get(getattr(each, kernel), 1.0) for each in tried]
        return [
            Run([1e-5 * speed * self.random.uniform(0.995, 1.005) for _ in range(rounds)])
            if speed
            else Run(failure="cannot be run: such")
            for speed in speeds
        ]

    def tools(self) -> Tools:
        return Tools(self.compile, self.time, 99 * 1024, self.lines.append)


def test_candidates_are_near_allowed_by_a_table_and_not_the_default() -> None:
    for default in (*DEFAULT, Tile(16, 16, 4, 1), Tile(128, 64, 8, 3)):
        near = candidates(default, 2)
        assert default not in near and len(near) == len(set(near)) > 10
        assert all(0 < distance(tile, default) <= 2 for tile in near)
        assert candidates(default, 1) == near[: len(candidates(default, 1))]
    sizes = [tile.rows * tile.keys for tile in all_tiles()]
    assert sizes == sorted(sizes, reverse=True)
    key = Key("sm_90", "float16", 128, 0)
    for tile in all_tiles():
        table = {key: Entry(Configuration(tile, tile), None)}
        assert read_table(configurations.table_text(table), "a file") == table


@pytest.mark.parametrize("quick", [False, True])
def test_the_fastest_tile_is_chosen(quick: bool) -> None:
    bench = Bench({BEST: 0.7, Tile(32, 32, 4, 2): 0.8})
    choice = choose(SIZE, "gradient", DEFAULT, bench.tools(), quick)
    assert choice.tile == BEST
    assert choice.seconds == pytest.approx(0.7e-5, rel=0.01) and choice.ratio == pytest.approx(0.7, rel=0.01)
    assert {each.statistics for each in bench.timed} == {DEFAULT.statistics}


def test_the_default_stays_unless_a_tile_is_faster_beyond_noise() -> None:
    for speed in (1.0, 1 - MARGIN / 2):
        choice = choose(SIZE, "gradient", DEFAULT, Bench({BEST: speed}).tools(), False)
        assert choice.tile == DEFAULT.gradient and choice.ratio == 1.0
    assert choose(SIZE, "gradient", DEFAULT, Bench({BEST: 1 - 2 * MARGIN}).tools(), False).tile == BEST


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome(1000, 255, 8), "spills 8 bytes a thread"),
        (Outcome(200_000, 255, 0), "200000 bytes of shared memory, of 101376"),
        (Outcome(failure="does not compile: such"), "does not compile: such"),
    ],
)
@pytest.mark.parametrize("where", [("dogo_loss", "static"), *OTHERS], ids=" ".join)
def test_a_tile_that_does_not_compile_well_for_every_loss_is_left_out(
    outcome: Outcome, words: str, where: tuple[str, str]
) -> None:
    second = Tile(32, 32, 4, 2)
    bench = Bench(
        {BEST: 0.5, second: 0.8},
        lambda tile, what: outcome if (tile, what) == (BEST, where) else Outcome(1000, 100, 0),
    )
    assert choose(SIZE, "gradient", DEFAULT, bench.tools(), False).tile == second
    assert any(str(BEST) in line and words in line for line in bench.lines), bench.lines


def test_tiles_that_cannot_be_run_are_left_out_and_said() -> None:
    bench = Bench({BEST: 0.0, Tile(32, 32, 4, 2): 0.9})
    assert choose(SIZE, "gradient", DEFAULT, bench.tools(), False).tile == Tile(32, 32, 4, 2)
    assert f"  gradient {BEST}: left out, cannot be run: such" in bench.lines
    default = DEFAULT.gradient
    with pytest.raises(DefaultFailed, match=f"shipped tiles of the gradient kernel, {default}, cannot be run: such"):
        choose(SIZE, "gradient", DEFAULT, Bench({default: 0.0}).tools(), False)


def test_a_tile_that_fails_only_among_the_last_is_left_out_and_said() -> None:
    bench = Bench({BEST: 0.5, Tile(32, 32, 4, 2): 0.9})

    def time(size: TunedSize, kernel: str, tried: Sequence[Configuration], rounds: int) -> list[Run]:
        if len(tried) <= 5:
            bench.speeds[BEST] = 0.0
        return bench.time(size, kernel, tried, rounds)

    choice = choose(SIZE, "gradient", DEFAULT, bench.tools()._replace(time=time), False)
    assert choice.tile == Tile(32, 32, 4, 2)
    assert [line for line in bench.lines if str(BEST) in line] == [f"  gradient {BEST}: left out, cannot be run: such"]


def test_an_entry_whose_default_fails_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench({})

    def time(size: TunedSize, kernel: str, tried: Sequence[Configuration], rounds: int) -> list[Run]:
        if size.rows == 1024 and kernel == "gradient":
            return [Run(failure="cannot be run: OutOfMemoryError CUDA out of memory")] * len(tried)
        return bench.time(size, kernel, tried, rounds)

    config, out = TuneConfig(dtypes=("bfloat16",), rows=(256, 1024, 4096)), tmp_path / "tiles.json"
    tune(config, out, "sm_90", MACHINE, bench.tools()._replace(time=time))
    assert {key.rows for key in read_table(out.read_text(), "")} == {0, 2048}
    (line,) = [line for line in bench.lines if "not tuned" in line]
    assert "N >= 512 (measured at 1024 x 128): not tuned, the shipped tiles of the gradient kernel" in line
    assert line.endswith("cannot be run: OutOfMemoryError CUDA out of memory") and "\n" not in line
    assert capsys.readouterr().out == f"2 entries in {out}\n"


FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it"),
    RuntimeError("CUDA error: invalid argument"),
    Exception("of the compiler"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["_pass_of", "_capture", "_replay"])
def test_what_a_tile_does_on_the_gpu_is_no_exception(
    error: Exception, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are made up. What fails for one leaves the others; what fails before any, all."""
    tried = [DEFAULT, DEFAULT._replace(gradient=BEST), DEFAULT._replace(gradient=Tile(32, 32, 4, 2))]
    replays = dict.fromkeys(tried, 0)

    def capture(run: Callable[[], Any], configuration: Configuration) -> tuple[Any, int]:
        if step == "_capture" and configuration == tried[1]:
            raise error
        return configuration, 1

    def replay(graph: Configuration, passes: int) -> float:
        replays[graph] += 1
        if step == "_replay" and graph == tried[1] and replays[graph] == 3:
            raise error
        return 1e-5

    def pass_of(*_: Any) -> Callable[[], Any]:
        if step == "_pass_of":
            raise error
        return lambda: None

    for name, function in (("_capture", capture), ("_replay", replay), ("_pass_of", pass_of)):
        monkeypatch.setattr(timing, name, function)
    runs = timing.GraphTimer()(SIZE, "gradient", tried, 5)
    failure = f"cannot be run: {type(error).__name__} {str(error).splitlines()[0]}"
    failed = Run(failure=failure)
    assert runs == ([failed] * 3 if step == "_pass_of" else [Run([1e-5] * 5), failed, Run([1e-5] * 5)])


class Pool:
    """A pool of processes, as far as compiling goes: the deadly tile takes it and whatever is not done with it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.broken = False

    def submit(self, function: Any, case: Any, target: str, kernel: str, tile: Tile, multiprocessors: int) -> Any:
        if self.broken:
            raise BrokenProcessPool
        self.broken = tile == BEST
        job: Future[Outcome] = Future()
        if self.broken:
            job.set_exception(BrokenProcessPool())
        else:
            job.set_result(Outcome(tile.rows))
        return job

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        pass


def test_a_compiler_s_process_that_dies_takes_one_tile_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    compilers = compiling.Compilers("sm_90", 132)
    others = [Tile(rows, 32, 4, 2) for rows in (16, 32, 128)]
    tiles = [*others[:2], BEST, *others[2:]]
    outcomes = compilers(SIZE, "gradient", tiles, OTHERS[0])
    assert outcomes == [Outcome(16), Outcome(32), compiling.DIED, Outcome(128)]
    assert compilers(SIZE, "gradient", others, OTHERS[0]) == [Outcome(tile.rows) for tile in others]


def test_tune_writes_what_it_found_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "folder" / "mine.json"
    old = {Key("sm_80", "float32", WIDE, 0): SHIPPED[Key(ANY, "float32", WIDE, 0)]}
    merge(out, old)
    config = TuneConfig(dtypes=("bfloat16",), widths=(100, 128), rows=(256, 300, 4096))
    bench = Bench({Tile(64, 32, 4, 2): 0.5, BEST: 0.4})
    tune(config, out, "sm_90", MACHINE, bench.tools())
    table = read_table(out.read_text(), "mine")
    keys = [Key("sm_90", "bfloat16", 128, rows) for rows in (0, 2048)]  # 100 and 128, 256 and 300 are one bucket
    assert set(table) == {*old, *keys} and table[next(iter(old))] == next(iter(old.values()))
    record = table[keys[1]].tuned
    assert record is not None and MACHINE.items() <= record.items()
    assert (record["rows"], record["columns"]) == (4096, 100) and record["date"].count("-") == 2
    for kernel in ("statistics", "gradient"):
        assert record[kernel]["median_us"] > 0 and 0 < record[kernel]["ratio_to_default"] <= 1
    said = [line for line in bench.lines if line.startswith("sm_90")]
    assert len(said) == 2 and "64 < D <= 128, N >= 2048 (measured at 4096 x 100)" in said[1]
    assert not [path for path in out.parent.iterdir() if path != out]
    monkeypatch.setenv("DOGO_FAST_TILES", str(out))
    assert tile_tables.configuration("sm_90", "bfloat16", 128, 5000) == table[keys[1]].configuration


def test_an_interruption_and_the_end_of_the_minutes_keep_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TuneConfig(dtypes=("bfloat16",), rows=(256, 1024, 4096), minutes=2)
    bench, times = Bench({}), iter([0.0, 0.0, 100.0, 121.0])
    tune(config, tmp_path / "minutes.json", "sm_90", MACHINE, bench.tools(), lambda: next(times))
    assert len(read_table((tmp_path / "minutes.json").read_text(), "")) == 2
    assert "1 of 3 entries are left: --minutes 2 are over" in capsys.readouterr().out

    def interrupt(size: TunedSize, *rest: Any) -> list[Run]:
        if size.rows == 1024:
            raise KeyboardInterrupt
        return bench.time(size, *rest)

    out = tmp_path / "interrupted.json"
    with pytest.raises(KeyboardInterrupt, match=r"1 of 3 entries are in .*interrupted\.json"):
        tune(config, out, "sm_90", MACHINE, bench.tools()._replace(time=interrupt))
    assert set(read_table(out.read_text(), "")) == {Key("sm_90", "bfloat16", 128, 0)}


def test_a_table_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "mine.json"
    entry = SHIPPED[Key(ANY, "float32", WIDE, 0)]
    merge(out, {Key("sm_80", "float32", WIDE, 0): entry})
    before = out.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(UserError, match=r"mine\.json cannot be written \(No space left on device\)"):
                merge(out, {Key("sm_90", "float32", WIDE, 0): entry})
        assert out.read_bytes() == before
    assert list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*")) == []
    out.write_text("{")
    with pytest.raises(UserError, match=r"mine\.json is not a table of tiles: no JSON"):
        merge(out, {})
    assert out.read_text() == "{"
    with pytest.raises(UserError, match="`out` must be a file that can be written"):
        merge(out / "below.json", {})


def test_two_that_tune_into_one_table_keep_the_entries_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, entry = tmp_path / "mine.json", SHIPPED[Key(ANY, "float32", WIDE, 0)]
    read = tile_tables.read_file

    def read_slowly(path: Path) -> dict[Key, Entry]:
        table = read(path)
        time.sleep(0.01)  # long enough for the other to write in between
        return table

    monkeypatch.setattr(tile_tables, "read_file", read_slowly)
    keys = [Key(f"sm_{number}", "float32", WIDE, 0) for number in range(24)]
    with ThreadPoolExecutor(4) as pool:  # each opens the lock anew, as a process does
        list(pool.map(lambda key: merge(out, {key: entry}), keys))
    assert set(read(out)) == set(keys)
    assert list(tmp_path.iterdir()) == [out]


def test_a_table_s_lock_ends_with_its_process(tmp_path: Path) -> None:
    """A killed one leaves the file of the lock, which the next takes and removes."""
    out, entry = tmp_path / "mine.json", SHIPPED[Key(ANY, "float32", WIDE, 0)]
    hold = (
        "import pathlib, sys, time; from dogo_fast.atomic import alone_with\n"
        "with alone_with(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(100)"
    )
    with (
        subprocess.Popen([sys.executable, "-c", hold, str(out)], stdout=subprocess.PIPE) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        assert process.stdout is not None and process.stdout.readline()
        merged = pool.submit(merge, out, {Key("sm_80", "float32", WIDE, 0): entry})
        try:
            with pytest.raises(TimeoutError):
                merged.result(timeout=0.2)
        finally:
            process.kill()
        merged.result(timeout=60)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "1"], ["--rows must be numbers from 2", "got 1"]),
        (["--widths", "0"], ["--widths must be numbers from 1", "got 0"]),
        (["--widths", "many"], ["--widths", "many"]),
        (["--dtypes", "int8"], ["--dtypes", "bfloat16", "'int8'"]),
        (["--minutes", "nan"], ["--minutes must be a finite number above 0, got nan"]),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("dogo-fast: error: ") and message.count("\n") == 1
    assert all(word in message for word in words), message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_tune_says_what_can_be_done(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["tune", "--out", str(tmp_path / "tiles.json")]) == 2
    message = capsys.readouterr().err
    assert "tune needs a GPU" in message and "python -m dogo_fast.tuning" in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_static_search_takes_the_largest_tile_that_nothing_spills_with() -> None:
    def compile_one(case: Any, target: str, kernel: str, tile: Tile) -> Outcome:
        if tile.rows * tile.keys > 2048:
            return Outcome(failure="does not compile")
        shared = 1024 * (100 if tile.num_stages > 1 else 90)
        spills = case.variant == "learnt" and target == "sm_90" and tile.num_warps == 4
        return Outcome(shared, 200, 8 if spills else 0)

    lines: list[compiling.Line] = []
    found = static_search(SIZE, "gradient", ("sm_90", "sm_120"), lines.append, compile_one=compile_one)
    assert found == Tile(128, 16, 8, 1)
    assert {line.target for line in lines if line.tile == found} == {"sm_90", "sm_120"}
    assert len([line for line in lines if line.tile == found]) == 2 * (1 + len(OTHERS))
    assert "does not compile" in str(lines[0]) and "92160" in str(lines[-1])
    assert static_search(SIZE, "gradient", ("sm_90",), lines.append, iter([]), compile_one) is None


CRITICAL = [
    ("float32", 128, "statistics", "sm_80"),
    ("bfloat16", 128, "gradient", "sm_90"),
    ("bfloat16", 1024, "statistics", "sm_100"),
    ("bfloat16", 256, "statistics", "sm_120"),
]
"""Where the default is nearest the limits; every entry is compiled by the compile report."""


def test_the_default_compiles_without_spilling_where_it_is_nearest_the_limits() -> None:
    program = (
        "import json, sys\n"
        "from dogo_fast.ops.compiling import KernelCase\n"
        "from dogo_fast.kernels.configurations import ANY\n"
        "from dogo_fast.tuning.compiling import compile_tile\n"
        "from dogo_fast.tuning.search import TunedSize\n"
        "from dogo_fast.kernels.configurations import SHIPPED\n"
        "for dtype, D, kernel, target in json.loads(sys.argv[1]):\n"
        "    tile = getattr(SHIPPED[TunedSize(dtype, D, 256).key(ANY)].configuration, kernel)\n"
        "    case = KernelCase('dogo_loss', dtype, D, 256, 'static')\n"
        "    print(json.dumps(compile_tile(case, target, kernel, tile)))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    arguments = [sys.executable, "-c", program, json.dumps(CRITICAL)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(CRITICAL)
    for what, outcome in zip(CRITICAL, outcomes, strict=True):
        assert outcome.rejection(1024 * SHARED_LIMITS["sm_86"]) == "", (what, outcome)
        assert outcome.spilled == 0 and outcome.registers, (what, outcome)


@pytest.mark.gpu
def test_quick_tuning_makes_a_table_that_the_losses_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tiles.json"
    options = ["--quick", "--dtypes", "bfloat16", "--widths", "64", "--rows", "256", "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "dogo_fast", "tune", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ((key, entry),) = read_table(out.read_text(), "tuned").items()
    assert (key.dtype, key.width, key.rows) == ("bfloat16", 64, 0)
    assert entry.tuned is not None and entry.tuned["gpu"] == torch.cuda.get_device_name()
    monkeypatch.setenv("DOGO_FAST_TILES", str(out))
    tile_tables.table.cache_clear()
    a, b, c, d = projections(200, 60, count=4, dtype=torch.bfloat16, device="cuda")
    assert functional.dogo_loss((a, b), (c, d)).loss.isfinite()
    assert tile_tables.configuration(key.architecture, "bfloat16", 64, 200) == entry.configuration


@pytest.mark.gpu
def test_tiles_are_chosen_inside_a_capture() -> None:
    a, b, c, d = projections(256, 128, count=4, device="cuda")
    expected = functional.dogo_loss((a, b), (c, d)).loss  # compiles
    tile_tables.table.cache_clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = functional.dogo_loss((a, b), (c, d)).loss
    assert tile_tables.table.cache_info().misses == 1
    graph.replay()
    assert torch.equal(loss, expected)


def test_every_entry_of_the_default_fits_the_numbers_a_thread_may_hold() -> None:
    for dtype, widths in WIDTHS.items():
        for width in widths:
            for rows in ROWS:
                assert set(SHIPPED[Key(ANY, dtype, width, rows)].configuration) <= set(all_tiles())
