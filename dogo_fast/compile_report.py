"""Compile every kernel in every configuration for several GPUs, without one, and report what the compiler made of it.

    python -m dogo_fast.compile_report [--targets sm_90 ...] [--full] [--out FILE]

For NVIDIA targets the report reads the machine code (dogo_fast.machine_code): registers and spilled bytes a thread,
shared memory a program, and how many HGMMA (Hopper tensor-core), MUFU.EX2 (exponential) and local-memory instructions
there are. For AMD targets compilation itself is the check.
"""

import argparse
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch

from dogo_fast import machine_code
from dogo_fast.atomic import write_atomically

if TYPE_CHECKING:
    from dogo_fast.kernels.configurations import Configuration, Table

LOSSES = ("nt_xent", "similarity_kl", "dogo_loss")
WIDEST = {"bfloat16": 1024, "float16": 1024, "float32": 256}
"""Columns at which the entry for rows of several chunks is compiled."""
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
"""The shipped table has no entries for the last two: there the default is compiled."""
MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}
"""Of an A100, of an H100 (SXM) or H200, of a B200. Their number decides in how many parts a launch cuts the keys."""
HEADER = f"{'target':8}{'loss':15}{'dtype':10}{'D':>5}{'N':>7}{'variant':>10}  {'kernel':28}{'tile':>9}{'warps':>6}" + (
    f"{'regs':>6}{'spill':>7}{'shared':>8}{'HGMMA':>7}{'EX2':>6}{'LDL+STL':>9}"
)


class Case(NamedTuple):
    """One loss at one size; ``variant`` is "static", "online" (small temperatures), "learnt" (tensor temperatures) or
    "rows". The augmentation is a case too: D is the side of images and views, ``variant`` the recipe."""

    loss: str
    dtype: str
    D: int
    N: int
    variant: str


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


class Launch(NamedTuple):
    """A recorded launch: positional arguments, and what was passed by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    switches: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """Arguments, switches and Triton's options by name."""
        return dict(zip(self.kernel.arg_names, self.arguments, strict=False)) | self.switches

    @property
    def tile(self) -> str:
        """Rows and keys of a tile, or the pixels of the augmentation's; "" for kernels that have none."""
        values = self.values
        if "BLOCK_M" in values:
            return f"{values['BLOCK_M']}x{values['BLOCK_N']}"
        return str(values["BLOCK"]) if "BLUR_SIZE" in values else ""


def launches(
    case: Case, target: str, tiles: "Configuration | Table | None" = None, multiprocessors: int | None = None
) -> list[Launch]:
    """The launches of one forward and backward pass on a target, recorded on tensors without memory; with the given
    tiles or those of a table, by default the shipped one, and for so many multiprocessors, by default those of
    MULTIPROCESSORS, or sm_90's."""
    from dogo_fast.kernels.configurations import SHIPPED
    from dogo_fast.ops import launch, library, tile_tables

    multiprocessors = multiprocessors or MULTIPROCESSORS.get(target, MULTIPROCESSORS["sm_90"])
    recorded: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **switches: Any) -> None:
        recorded.append(Launch(kernel, grid, arguments, switches))

    dtype = getattr(torch, case.dtype)
    if case.loss == "augment":
        with mock.patch.object(launch, "run", record):
            _augment(case, dtype)
        return recorded
    learnt = torch.empty((), device="meta") if case.variant == "learnt" else None
    number = 0.02 if case.variant == "online" else 0.5
    how = ("float32", "triton")
    views = [torch.empty(case.N, case.D, dtype=dtype, device="meta") for _ in range(4)]
    gradient = torch.empty(2 * case.N if case.loss == "nt_xent" else case.N, device="meta")
    gradient = gradient if case.variant == "rows" else gradient[0]
    reduction = "none" if case.variant == "rows" else "sum"
    settings: tuple[Any, ...]
    with (
        mock.patch.object(launch, "run", record),
        mock.patch.object(launch, "architecture", lambda device: target),
        mock.patch.object(launch, "multiprocessors", lambda device: multiprocessors),
        tile_tables.forced(tiles or SHIPPED),
    ):
        if case.loss == "nt_xent":
            settings = (learnt, number, reduction, *how)
            saved = library._nt_xent_forward(*views[:2], *settings)[1:]
            library._nt_xent_backward(gradient, *saved, *views[:2], *settings)
        elif case.loss == "similarity_kl":
            settings = (learnt, number, learnt, number / 2, reduction, case.variant == "static", *how)
            saved = library._similarity_kl_forward(*views, *settings)[1:]
            library._similarity_kl_backward(gradient, *saved, *views, *settings)
        else:
            settings = (learnt, number, learnt, number / 5, 1.0, 1.0, "batchmean", *how)
            saved = library._dogo_loss_forward(*views, *settings)[7:]
            upstream = (gradient, *[None] * 6)
            library._dogo_loss_backward(*upstream, *saved, *views, *settings)
    return recorded


def buffer_bytes(recorded: list[Launch]) -> int:
    """Bytes of every tensor that the launches of a loss are given, but for its inputs: gradients, what the forward
    keeps, and what lives for a launch or two."""
    found: dict[tuple[Any, ...], int] = {}
    for launch in recorded:
        inputs = ("p_a_1", "p_b_1", "p_a_2", "p_b_2") if launch.kernel.__name__ == "normalize_kernel" else ()
        for name, value in launch.values.items():
            if isinstance(value, torch.Tensor) and name not in inputs:
                found[value.untyped_storage()._cdata, value.storage_offset(), value.shape] = value.nbytes
    return sum(found.values())


def _augment(case: Case, dtype: torch.dtype) -> None:
    """Four views of a batch of square images."""
    from dogo_fast.augment import VIEW_RECIPES, Augmentation
    from dogo_fast.ops.augment import launch_augmentation

    recipes = [VIEW_RECIPES[case.variant]] * 4
    augmentation = Augmentation(recipes, (case.D, case.D), 0, dtype=dtype, device="meta", backend="reference")
    images = torch.empty(1, 3, case.D, case.D, dtype=torch.uint8, device="meta")
    rows = torch.empty(case.N, dtype=torch.int64, device="meta")
    launch_augmentation(augmentation, images, rows, rows, None)


def build(launch: Launch, target: str) -> Any:
    """Compile one recorded launch as Triton's own launcher would specialise it: the kernel as Triton has it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = launch.values
    options = {key: values.pop(key) for key in ("num_warps", "num_stages") if key in values}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        kind, aligned = _specialisation(values[parameter.name], parameter.is_constexpr)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(index,)] = values[parameter.name]
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=gpu, options=options)


def compile_launch(
    launch: Launch, target: str, case: Case, read: Callable[[bytes, Compiled], None] | None = None
) -> Compiled:
    """What the compiler makes of one recorded launch; ``read`` gets an NVIDIA GPU's machine code, by default all that
    the report has of it."""
    compiled = build(launch, target)
    report = Compiled(target, case, launch.kernel.__name__, launch.tile, compiled.metadata.num_warps)
    report.shared = compiled.metadata.shared
    if not target.startswith("gfx"):
        (read or read_machine_code)(compiled.asm["cubin"], report)
    return report


def _specialisation(value: Any, is_constexpr: bool) -> tuple[str, bool]:
    """(type, whether divisible by 16) of an argument."""
    pointers = {
        torch.float32: "*fp32",
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.uint8: "*u8",
        torch.int64: "*i64",
    }
    if is_constexpr or value is None or (isinstance(value, int) and value == 1):
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        return pointers[value.dtype], True
    return ("i32", value % 16 == 0) if isinstance(value, int) else ("fp32", False)


def read_resources(cubin: bytes, report: Compiled) -> None:
    """Registers and spilled bytes alone, in a fraction of the time."""
    report.registers, report.spilled = machine_code.resources(cubin)


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

    root = Path(__file__).parents[1]

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
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.compile_report", description=__doc__.split("\n", 1)[0])
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
