"""Compile every kernel in every configuration for several GPUs, without one, and report what the compiler made of it.

    python -m dogo_fast.bench.reports.compile_report [--targets sm_90 ...] [--out FILE]

For NVIDIA targets the report reads the machine code (machine_code.py): registers and spilled bytes a thread,
shared memory a program, and how many HGMMA (Hopper tensor-core), MUFU.EX2 (exponential) and local-memory instructions
there are. For AMD targets compilation itself is the check.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from dogo_fast.atomic import write_atomically
from dogo_fast.kernels.configurations import ROWS, SHIPPED, WIDE, WIDTHS, Key, look_up
from dogo_fast.measuring import compiler_versions
from dogo_fast.ops.compiling import KernelCase, build
from dogo_fast.ops.launches import Launch

from . import machine_code
from .cases import launches

WIDEST = 1024
"""Columns at which the entry for rows of several chunks is compiled."""
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
"""The shipped table has no entries for the last two: there the default is compiled."""
VIEWS = ((32, "cifar"), (96, "simclr"), (224, "simclr"))
LINE = "{:8}{:15}{:10}{:>5}{:>7}{:>10}  {:28}{:>9}{:>6}{:>6}{:>7}{:>8}{:>7}{:>6}{:>9}"
HEADER = LINE.format(
    *("target", "loss", "dtype", "D", "N", "variant", "kernel", "tile", "warps"),
    *("regs", "spill", "shared", "HGMMA", "EX2", "LDL+STL"),
)


def cases() -> Iterator[KernelCase]:
    """The whole loss in the entries of the shipped table for rows of 128 columns and more (float16 at 128 alone,
    float32 not in several chunks), and in bfloat16 at D = 128 its variants, the other losses and the views."""
    for dtype in ("bfloat16", "float32"):
        for width in WIDTHS[dtype]:
            if width >= 128 and (dtype, width) != ("float32", WIDE):
                D = WIDEST if width == WIDE else width
                yield from (KernelCase("dogo_loss", dtype, D, N, "static") for N in _sizes(dtype, width))
    for size, recipe in VIEWS:
        yield KernelCase("augment", "bfloat16", size, 256, recipe)
    yield KernelCase("dogo_loss", "float16", 128, 4096, "static")
    for loss, variant in (("dogo_loss", "online"), ("nt_xent", "rows"), ("similarity_kl", "learnt")):
        yield KernelCase(loss, "bfloat16", 128, 4096, variant)


def _sizes(dtype: str, width: int) -> list[int]:
    """A number of rows for each different choice of tiles that a bucket of widths has for some target."""
    chosen: dict[tuple[Any, ...], int] = {}
    for rows, N in zip(ROWS, (256, 1024, 4096, 16384), strict=True):
        tiles = tuple(look_up(SHIPPED, Key(target, dtype, width, rows)).configuration for target in TARGETS)
        chosen.setdefault(tiles, N)
    return list(chosen.values())


def compile_launch(launch: Launch, target: str) -> list[object]:
    """What the compiler makes of one recorded launch: the columns from the kernel on."""
    compiled = build(launch, target)
    made: list[object] = [launch.name, launch.tile, compiled.metadata.num_warps]
    if target.startswith("gfx"):
        return [*made, "-", "-", compiled.metadata.shared, "-", "-", "-"]
    code = machine_code.read(compiled.asm["cubin"])
    products = sum(each.name == "HGMMA" for each in code.instructions)
    resources = [code.registers, code.stack, compiled.metadata.shared]
    return [*made, *resources, products, code.number("exp2"), code.number("local")]


def compile_case(case: KernelCase, targets: tuple[str, ...]) -> list[list[object]]:
    """The rows of all kernels of a case for all targets."""
    what = [case.loss, case.dtype, case.D, case.N, case.variant]
    return [[target, *what, *compile_launch(launch, target)] for target in targets for launch in launches(case, target)]


def line(row: list[object]) -> str:
    return LINE.format(*row) + ("  spills" if spills(row) else "")


def spills(row: list[object]) -> bool:
    return row[10] not in ("-", 0)


def refuse_the_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("the kernels cannot be compiled while TRITON_INTERPRET=1 is set: unset it")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.bench.reports.compile_report")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    refuse_the_interpreter()
    lines = [
        ", ".join(f"{name} {value}" for name, value in compiler_versions().items()),
        "registers and spilled bytes a thread, shared memory in bytes a program, instructions as in the code",
        HEADER,
    ]
    print("\n".join(lines), flush=True)
    spilling = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(compile_case, cases(), itertools.repeat(tuple(arguments.targets)))
        for row in itertools.chain.from_iterable(found):
            lines.append(line(row))
            print(lines[-1], flush=True)
            spilling += spills(row)
    lines.append(f"{spilling} of {len(lines) - 3} kernels spill")
    print(lines[-1])
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
