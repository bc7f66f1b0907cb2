"""``dogo-fast benchmark``: run the benchmarks, record them as JSON, show them as tables."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from dogo_fast.atomic import write_atomically
from dogo_fast.errors import UserError

Suite = Literal["dogo_loss", "nt_xent", "similarity_kl", "augment", "step", "pretraining"]
Grid = Literal["short", "full", "check", "smoke"]
NEEDED = ("pytest", "pytest_benchmark", "kornia")


def benchmark(grid: Grid = "short", only: tuple[Suite, ...] = (), out: Path = Path("benchmark.json")) -> None:
    """Measure every kernel against what it is compared with, on the CPU and on a GPU if there is one.

    Args:
        grid: which sizes: short (about ten minutes), full (an evening), check (the few that make bench-check compares),
            smoke (to see that all runs).
        only: some of the suites; all of them if none is given.
        out: where the record is written.

    Raises:
        UserError: packages that are missing, a place that cannot be written, or a benchmark that failed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'dogo-fast[train,bench]'")
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--out must be a file in a folder that exists, got {out}")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--out must be a file that can be written, got {out}")
    specification = importlib.util.find_spec("dogo_fast.bench")
    if specification is None or specification.origin is None:
        raise UserError("the benchmarks are not installed with this copy of dogo_fast")
    folder = Path(specification.origin).parent
    files = [str(folder / f"test_{name}.py") for name in only] or [str(folder)]
    # options of a pytest that this may run in are not for the suite
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "record.json"
        options = [f"--grid={grid}", f"--benchmark-json={record}", "--benchmark-columns=median,iqr,rounds", "-q", "-rs"]
        options += [f"--benchmark-storage={scratch}", "-p", "no:cacheprovider", "--rootdir", str(folder.parent)]
        code = subprocess.run(
            [sys.executable, "-m", "pytest", *files, *options], env=environment, check=False
        ).returncode
        if code != 0:
            raise UserError(f"the benchmarks failed (pytest's exit code {code}); nothing was recorded")
        write_atomically(out, record.read_bytes())
    from dogo_fast.bench import tables

    if tables.main([str(out)]) == 0:
        print(f"recorded in {out}")
