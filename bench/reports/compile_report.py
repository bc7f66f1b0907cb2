"""Compile every kernel in every configuration for several GPUs, without one, and report what the compiler made of it.

    python -m dogo_fast.bench.reports.compile_report [--targets sm_90 ...] [--full] [--out FILE]

For NVIDIA targets the report reads the machine code (machine_code.py): registers and spilled bytes a thread,
shared memory a program, and how many HGMMA (Hopper tensor-core), MUFU.EX2 (exponential) and local-memory instructions
there are. For AMD targets compilation itself is the check.
"""

import argparse
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dogo_fast.atomic import write_atomically
from dogo_fast.ops.compiling import Case, build
from dogo_fast.ops.launches import Launch

from . import machine_code
from .cases import launches

WIDEST = {"bfloat16": 1024, "float16": 1024, "float32": 256}
"""Columns at which the entry for rows of several chunks is compiled."""
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
"""The shipped table has no entries for the last two: there the default is compiled."""
HEADER = f"{'target':8}{'loss':15}{'dtype':10}{'D':>5}{'N':>7}{'variant':>10}  {'kernel':28}{'tile':>9}{'warps':>6}" + (
    f"{'regs':>6}{'spill':>7}{'shared':>8}{'HGMMA':>7}{'EX2':>6}{'LDL+STL':>9}"
)


@dataclass
class Compiled:
    """What the compiler made of one kernel of one case for one target."""

    target: str
    case: Case
    kernel: str
    tile: str
    warps: int
    registers: int | None = None
    spilled: int | None = None
    shared: int | None = None
    instructions: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = [self.registers, self.spilled, self.shared]
        counts += [self.instructions.get(name) for name in ("HGMMA", "EX2", "LOCAL")]
        numbers = "".join(
            f"{'-' if count is None else count:>{width}}"
            for count, width in zip(counts, (6, 7, 8, 7, 6, 9), strict=True)
        )
        loss, dtype, D, N, variant = self.case
        what = f"{self.target:8}{loss:15}{dtype:10}{D:>5}{N:>7}{variant:>10}"
        return f"{what}  {self.kernel:28}{self.tile:>9}{self.warps:>6}{numbers}{'  spills' if self.spilled else ''}"


def cases(full: bool) -> Iterator[Case]:
    """The whole loss in every entry of the shipped table, and at D = 128 the other losses and variants.

    Not ``full``: float16 at D = 128 alone, no rows of one chunk under 128 columns, no float32 rows of several, and
    variants in bfloat16 alone.
    """
    from dogo_fast.kernels.configurations import DTYPES, WIDE, WIDTHS

    for dtype in DTYPES if full else ("bfloat16", "float32"):
        for width in WIDTHS[dtype]:
            if not full and (width < 128 or (dtype, width) == ("float32", WIDE)):
                continue
            for N in _sizes(dtype, width):
                D = WIDEST[dtype] if width == WIDE else width
                yield Case("dogo_loss", dtype, D, N, "static")
                if full:
                    yield Case("dogo_loss", dtype, D, N, "learnt")
    for size, recipe in ((32, "cifar"), (96, "simclr"), (224, "simclr")):
        yield Case("augment", "bfloat16", size, 256, recipe)
    yield Case("dogo_loss", "bfloat16", 128, 4096, "online")
    if not full:
        yield Case("dogo_loss", "float16", 128, 4096, "static")
    if not full:
        yield Case("nt_xent", "bfloat16", 128, 4096, "rows")
        yield Case("similarity_kl", "bfloat16", 128, 4096, "learnt")
        return
    for loss, variant in itertools.product(("nt_xent", "similarity_kl"), ("static", "online", "learnt", "rows")):
        yield Case(loss, "bfloat16", 128, 4096, variant)


def _sizes(dtype: str, width: int) -> list[int]:
    """A number of rows for each different choice of tiles that a bucket of widths has for some target."""
    from dogo_fast.kernels.configurations import ROWS, SHIPPED, Key, look_up

    chosen: dict[tuple[Any, ...], int] = {}
    for rows, N in zip(ROWS, (256, 1024, 4096, 16384), strict=True):
        tiles = tuple(look_up(SHIPPED, Key(target, dtype, width, rows)).configuration for target in TARGETS)
        chosen.setdefault(tiles, N)
    return list(chosen.values())


def compile_launch(launch: Launch, target: str, case: Case) -> Compiled:
    """What the compiler makes of one recorded launch."""
    compiled = build(launch, target)
    report = Compiled(target, case, launch.name, launch.tile, compiled.metadata.num_warps)
    report.shared = compiled.metadata.shared
    if not target.startswith("gfx"):
        read_machine_code(compiled.asm["cubin"], report)
    return report


def read_machine_code(cubin: bytes, report: Compiled) -> None:
    """All that the report has of it."""
    code = machine_code.read(cubin)
    report.registers, report.spilled = code.registers, code.stack
    report.instructions = {
        "HGMMA": sum(each.name == "HGMMA" for each in code.instructions),
        "EX2": code.number("exp2"),
        "LOCAL": code.number("local"),
    }


def compile_case(case: Case, targets: tuple[str, ...]) -> list[Compiled]:
    """All kernels of a case for all targets."""
    return [compile_launch(launch, target, case) for target in targets for launch in launches(case, target)]


def versions() -> dict[str, str | None]:
    """Of what made the report; ``commit`` is None outside a repository, and ends in "+" with uncommitted changes."""
    import triton

    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        if not (root / ".git").exists():
            return None
        try:
            command = ["git", "-C", str(root), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit = git("rev-parse", "HEAD")
    changed = "+" if commit and git("status", "--porcelain", "--", "dogo_fast", "kernels") else ""
    return {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit and commit + changed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dogo_fast.bench.reports.compile_report", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--full", action="store_true", help="every dtype and variant, not only those that differ most")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("the kernels cannot be compiled while TRITON_INTERPRET=1 is set: unset it")
    spilling = 0
    lines = [
        ", ".join(f"{name} {value}" for name, value in versions().items()),
        "registers and spilled bytes a thread, shared memory in bytes a program, instructions as in the code",
        HEADER,
    ]
    print("\n".join(lines), flush=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_case, case, tuple(arguments.targets)) for case in cases(arguments.full)]
        for job in jobs:
            for report in job.result():
                lines.append(str(report))
                print(report, flush=True)
                spilling += bool(report.spilled)
    lines.append(f"{spilling} of {len(lines) - 3} kernels spill")
    print(lines[-1])
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
