"""``dogo-fast benchmark``: run the benchmarks, record them as JSON, show them as tables."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, get_args

from pydantic import Field

from dogo_fast.atomic import alone_with, remove_unfinished_writes, write_atomically
from dogo_fast.commands.options import Minutes, Options, parse
from dogo_fast.errors import StoppedBySignal, UserError
from dogo_fast.training.config import Metavar

Suite = Literal["dogo_loss", "nt_xent", "similarity_kl", "augment", "step", "pretraining", "streaming"]
Grid = Literal["short", "check", "smoke"]
NEEDED = ("pytest", "pytest_benchmark", "kornia")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSED_ON: dict[int, int] = {signal.SIGINT: signal.SIGTERM}
GRACE = 5.0


class BenchmarkConfig(Options):
    """What is measured, and where the record is written."""

    grid: Grid = "short"
    """Which sizes: short (about ten minutes), check (the few that make bench-check compares), smoke (to see that all
    runs)."""
    only: Annotated[tuple[Suite, ...], Metavar("SUITE")] = Field(
        (), description=f"Some of the suites {', '.join(get_args(Suite))}; all of them if none is given."
    )
    out: Annotated[Path, Metavar("FILE")] = Path("benchmark.json")
    """Where the record is written. Until all is measured, what there is lies beside it, with "-incomplete" in its name,
    and stays if the run is ended, until the next one has measured something."""
    minutes: Minutes = None
    """Begin no further case after so long; the record says by its cases which had their turn."""


def read(words: Sequence[str], summary: str) -> Callable[[], None]:
    """Measuring, and showing what was measured."""
    config = parse("benchmark", words, BenchmarkConfig, summary)
    return lambda: benchmark(config)


def benchmark(config: BenchmarkConfig) -> None:
    """Measure every kernel against what it is compared with, on the CPU and on a GPU if there is one; print tables.

    Raises:
        UserError: packages that are missing, a place that cannot be written or that another run writes to, nothing to
            measure, or a benchmark that failed.
        StoppedBySignal: SIGTERM, SIGINT or SIGHUP; all that measured has ended, and ``out`` is as it was.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'dogo-fast[train,bench]'")
    specification = importlib.util.find_spec("dogo_fast.bench")
    if specification is None or specification.origin is None:
        raise UserError("the benchmarks are not installed with this copy of dogo_fast")
    out = config.out
    incomplete = _check_place(out)
    with alone_with(out, wait=False):
        remove_unfinished_writes(incomplete)
        before = _identity(incomplete)
        folder = Path(specification.origin).parent
        with tempfile.TemporaryDirectory() as scratch:
            command = _suite(folder, Path(scratch), incomplete, config)
            # options of a pytest that this may run in are not for the suite
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
            try:
                code = run_in_group(command, environment)
            except StoppedBySignal as stop:
                raise StoppedBySignal(stop.number, _left(incomplete, before)) from None
        if code in (0, 5) and _identity(incomplete) == before:
            raise UserError("nothing was measured: every case was skipped, for the reasons above, or the grid has none")
        if code != 0:
            left = _left(incomplete, before)
            raise UserError(f"the benchmarks failed (pytest's exit code {code}); {left}, {out} is as it was")
        write_atomically(out, incomplete.read_bytes())
        incomplete.unlink()
    from dogo_fast.bench import tables

    if tables.main([str(out)]) != 0:
        raise UserError(f"{out} was recorded, but cannot be shown")
    print(f"recorded in {out}")


def _check_place(out: Path) -> Path:
    """Where what is measured is kept until all is.

    Raises:
        UserError: files cannot be written there.
    """
    try:
        resolved = out.resolve()
    except (OSError, RuntimeError):  # a link that leads to itself
        raise UserError(f"`out` must be a file that can be written, got {out}, a link that leads nowhere") from None
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise UserError(f"`out` must be a file in a folder that exists, got {out}")
    from dogo_fast.bench.records import INCOMPLETE

    incomplete = out.with_name(f"{out.stem}{INCOMPLETE}{out.suffix}")
    writable = all(os.access(each.parent, os.W_OK) for each in (out, resolved))
    if not writable or (incomplete.exists() and not incomplete.is_file()):
        raise UserError(f"`out` must be a file that can be written, with {incomplete.name} beside it, got {out}")
    return incomplete


def _suite(folder: Path, scratch: Path, record: Path, config: BenchmarkConfig) -> list[str]:
    """The command that runs the suites of ``folder``, whatever settings of pytest lie about."""
    settings = scratch / "pytest.ini"
    settings.write_text("[pytest]\n")
    files = [str(folder / f"test_{name}.py") for name in config.only] or [str(folder)]
    options = ["-c", str(settings), "--rootdir", str(folder.parent), "-p", "no:cacheprovider", "-q", "-rs"]
    options += [f"--grid={config.grid}", f"--record={record}", f"--parent={os.getpid()}"]
    options += [] if config.minutes is None else [f"--minutes={config.minutes}"]
    options += ["--benchmark-columns=median,iqr,rounds", f"--benchmark-storage={scratch}"]
    return [sys.executable, "-m", "pytest", *files, *options]


def _identity(path: Path) -> tuple[int, int] | None:
    """Another one after each ``write_atomically``."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _left(incomplete: Path, before: tuple[int, int] | None) -> str:
    if _identity(incomplete) == before:
        return "nothing was recorded"
    return f"what was measured is in {incomplete}"


def run_in_group(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program in a process group of its own; whoever stops us stops the program and what it started with it.

    The first signal goes to all of the group, a Ctrl-C as SIGTERM, which pytest has no words for; a second one kills
    it. A signal that we were told to ignore, as nohup does, is left alone, and outside the main thread all are.

    Returns:
        its exit code, negative if a signal to it alone ended it.

    Raises:
        StoppedBySignal: we got a signal, and the program has ended.
    """
    got: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        got.append(number)
        if process is not None and process.returncode is None:
            _signal_group(process.pid, _PASSED_ON.get(number, number) if len(got) == 1 else signal.SIGKILL)

    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, pass_on) for number in heard} if in_main_thread else {}
    try:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        if got:  # before there was anything to pass it on to
            _signal_group(process.pid, _PASSED_ON.get(got[0], got[0]))
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if got:
        _end_group(process.pid)  # what the program started and did not wait for
        raise StoppedBySignal(got[0], "nothing was recorded")
    return code


def _signal_group(group: int, number: int) -> bool:
    """Whether there was anyone left to get it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _end_group(group: int) -> None:
    """Kill what has not ended in GRACE seconds; not at once, since ninja must be left to stop its compilers, which have
    groups of their own."""
    deadline = time.monotonic() + GRACE
    while _signal_group(group, 0):
        if time.monotonic() > deadline:
            _signal_group(group, signal.SIGKILL)
            break
        time.sleep(0.02)
