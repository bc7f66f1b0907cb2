"""What a machine with a GPU is asked first, in slices that resume: ``make gpu-check``, until it says that all is done.

Into one folder: ``STEP.log`` of each step, ``state.json`` (which steps are done, with their seconds), ``machine.json``
(GPU, driver, versions, commit) and what the steps write: a record a suite of the benchmark, tuned tiles, run folders.
Tests that passed in one slice are left out of the next. Nothing is downloaded; torch, triton and what the extra [test]
brings must be there, kornia, lightly and pytorch-metric-learning for the contenders.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from dogo_fast.atomic import write_atomically
from dogo_fast.bench.machine import describe
from dogo_fast.measuring import commit

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("dogo_loss", "nt_xent", "similarity_kl", "augment", "step", "pretraining")
LEAST = 20.0
"""Seconds: no step is begun with less."""
PASSED = re.compile(
    r"(?:PASSED|SKIPPED)\s+(?:\[[ \d]+%\]\s+)?(tests/\S+\.py::.+?)\s*$|^(tests/\S+\.py::.+?) (?:PASSED|SKIPPED)"
)

Command = list[str]


def steps(out: Path, cifar: Path | None, workers: int) -> Mapping[str, Callable[[], Command]]:
    """By name, the command of each, made when its turn comes."""
    dogo = [sys.executable, "-m", "dogo_fast"]
    found: dict[str, Callable[[], Command]] = {
        "tests": lambda: test_command(out, workers),
        "pretrain-digits": lambda: [*dogo, "pretrain", "--out", str(out / "digits"), "--resume", "auto"],
    }
    for suite in SUITES:
        record = out / f"benchmark-{suite}.json"
        found[f"bench-{suite}"] = lambda suite=suite, record=record: [  # type: ignore[misc]
            *(*dogo, "benchmark", "--grid", "short", "--only", suite, "--minutes", "4", "--out", str(record))
        ]
    found["tune"] = lambda: [*dogo, "tune", "--quick", "--minutes", "3", "--out", str(out / "tiles.json")]
    if cifar is not None:
        options = ["--data", "cifar10", "--data-dir", str(cifar), "--epochs", "5", "--warmup-epochs", "1"]
        run = ["--preset", "cifar10-r18-r50", *options, "--out", str(out / "cifar10"), "--resume", "auto"]
        found["pretrain-cifar10"] = lambda: [*dogo, "pretrain", *run]
    return found


def test_command(out: Path, workers: int) -> Command:
    """The tests on a GPU that have not passed yet; their names go to a file, which a command line could not hold."""
    log = out / "tests.log"
    passed = passed_tests(log.read_text(errors="replace")) if log.is_file() else []
    (out / "passed.txt").write_text("".join(f"--deselect={name}\n" for name in passed))
    options = ["-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider", "-n", str(workers)]
    return [sys.executable, "-m", "pytest", *options, f"@{out / 'passed.txt'}", str(ROOT / "tests")]


def passed_tests(log: str) -> list[str]:
    """Names of the tests that a log of ``pytest -v``, with workers or without, says have passed or were skipped."""
    matches = (PASSED.search(line) for line in log.splitlines())
    return list(dict.fromkeys((match[1] or match[2]) for match in matches if match))


def run_step(command: Command, log: Path, seconds: float) -> int | None:
    """Run it to its end or for so long, its output added to the log; the exit code, None where the time was up. What it
    has started ends with it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            return process.wait(timeout=seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as ended:
            for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, None)):
                os.killpg(process.pid, number)
                try:
                    process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    continue
            if isinstance(ended, KeyboardInterrupt):
                raise
            return None


def check(out: Path, minutes: float, todo: Mapping[str, Callable[[], Command]]) -> bool:
    """Run steps that are not done until the time is up; whether all are done."""
    end = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.json"
    state = json.loads(state_file.read_bytes()) if state_file.is_file() else {}
    about = {"machine": describe(), "commit": commit()}
    write_atomically(out / "machine.json", (json.dumps(about, indent=1) + "\n").encode())
    for name, make in todo.items():
        if state.get(name, {}).get("done") or end - time.monotonic() < LEAST:
            continue
        start = time.monotonic()
        code = run_step(make(), out / f"{name}.log", end - start)
        spent = round(state.get(name, {}).get("seconds", 0) + time.monotonic() - start, 1)
        state[name] = {"done": code is not None, "code": code, "seconds": spent}
        write_atomically(state_file, (json.dumps(state, indent=1) + "\n").encode())
        words = "to be gone on with" if code is None else "done" if code == 0 else f"failed with {code}: see {name}.log"
        print(f"{name}: {words}, {spent:.0f} s", flush=True)
    left = [name for name in todo if not state.get(name, {}).get("done")]
    print(f"still to do: {', '.join(left)}; run it again" if left else f"all is done; everything is in {out}")
    return not left


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all is done, 3 while something is left, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"))
    parser.add_argument("--minutes", type=float, default=9.0, help="of this slice")
    parser.add_argument("--cifar10", type=Path, metavar="DIR", help="folder of CIFAR-10, for a run on real data")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="of the tests")
    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU: tests are skipped, the rest is on the CPU"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.rehearse:
        print("gpu-check: error: PyTorch sees no GPU here; --rehearse runs what a CPU can", file=sys.stderr)
        return 2
    out = options.out.absolute()
    todo = dict(steps(out, options.cifar10, options.workers))
    if options.rehearse and not torch.cuda.is_available():
        del todo["tune"]
    return 0 if check(out, options.minutes, todo) else 3


if __name__ == "__main__":
    sys.exit(main())
