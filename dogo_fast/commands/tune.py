"""``dogo-fast tune``: measure tiles on the present GPU and keep the table that the losses load."""

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from dogo_fast.atomic import alone_with, write_atomically
from dogo_fast.commands.options import Minutes, Options, parse
from dogo_fast.errors import UserError
from dogo_fast.kernels import configurations
from dogo_fast.kernels.configurations import Configuration, Entry, Key, Table
from dogo_fast.ops import tile_tables
from dogo_fast.ops.backend import interpreting
from dogo_fast.training.config import Metavar
from dogo_fast.tuning.search import KERNELS, Choice, DefaultFailed, Tools, TunedSize, choose

DType = Literal["bfloat16", "float16", "float32"]


def _from(least: int, most: int) -> AfterValidator:
    def check(value: int) -> int:
        if not least <= value <= most:
            raise ValueError(f"must be numbers from {least} to {most}")
        return value

    return AfterValidator(check)


class TuneConfig(Options):
    """What is measured, for how long, and where the table is kept."""

    quick: bool = False
    """Only the nearest tiles, in fewer rounds."""
    dtypes: tuple[DType, ...] = Field(("bfloat16", "float16", "float32"), min_length=1)
    """Of the products."""
    widths: tuple[Annotated[int, _from(1, 1 << 16)], ...] = Field((128,), min_length=1)
    """Columns of a projection; each stands for its bucket: up to 64, 128, 256, wider."""
    rows: tuple[Annotated[int, _from(2, 1 << 20)], ...] = Field((256, 1024, 4096, 16384), min_length=1)
    """Rows of a view; each stands for its bucket: from 0, 512, 2048, 8192."""
    out: Annotated[Path | None, Metavar("FILE")] = None
    """Table to write or to add to (default: the user's cache); DOGO_FAST_TILES=FILE then makes it count."""
    minutes: Minutes = None
    """Begin no further entry after so long."""

    def sizes(self) -> Iterator[TunedSize]:
        """One for every entry, the usual dtypes and small sizes first; a bucket that is named twice counts once."""
        seen = set()
        for dtype in self.dtypes:
            for width in self.widths:
                for rows in self.rows:
                    size = TunedSize(dtype, width, rows)
                    if size.key("") not in seen:
                        seen.add(size.key(""))
                        yield size


def read(words: Sequence[str], summary: str) -> Callable[[], None]:
    """Tuning as the words say."""
    config = parse("tune", words, TuneConfig, summary)
    return lambda: run(config)


def run(config: TuneConfig) -> None:
    """Tune on the present GPU.

    Raises:
        UserError: no GPU, or a file that cannot be read or written.
        KeyboardInterrupt: says what is kept.
    """
    out = config.out if config.out is not None else tile_tables.cached_file()
    if out is None:
        raise UserError("`out` must be given: there is no home folder to keep the table in")
    if not torch.cuda.is_available() or interpreting():
        where = "torch sees none here" if not interpreting() else "TRITON_INTERPRET=1 runs the kernels on the CPU"
        raise UserError(
            f"tune needs a GPU to measure on, and {where}; what compiles without spilling can be listed without one: "
            "python -m dogo_fast.tuning"
        )
    from dogo_fast.tuning.compiling import Compilers
    from dogo_fast.tuning.timing import (
        GraphTimer,
        about_the_machine,
        multiprocessors,
        present_architecture,
        shared_limit,
    )

    architecture = present_architecture()
    if not architecture.startswith("sm_"):
        raise UserError(f"tune knows how to compile for NVIDIA GPUs only, got {architecture}")
    compilers = Compilers(architecture, multiprocessors())
    tools = Tools(compilers, GraphTimer(), shared_limit(), print)
    try:
        tune(config, out, architecture, about_the_machine(), tools)
    finally:
        compilers.close()


def tune(
    config: TuneConfig,
    out: Path,
    architecture: str,
    machine: dict[str, str],
    tools: Tools,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Tune every size and add each entry to ``out`` as soon as it is known; prints a line an entry. One whose
    shipped tiles fail is left out, and its line says why.

    Args:
        config: what to tune, and for how long.
        out: the table; what it holds for other keys stays.
        architecture: as "sm_90".
        machine: what every entry's record says of the machine.
        tools: how to compile and time.
        clock: seconds.

    Raises:
        UserError: ``out`` is damaged or cannot be written.
        KeyboardInterrupt: says how many entries are kept.
    """
    merge(out, {})  # now, not after the first entry's minutes
    begun, done = clock(), 0
    sizes = list(config.sizes())
    try:
        for number, size in enumerate(sizes):
            if config.minutes is not None and clock() - begun > 60 * config.minutes:
                print(f"{len(sizes) - number} of {len(sizes)} entries are left: --minutes {config.minutes:g} are over")
                break
            key = size.key(architecture)
            default = configurations.look_up(configurations.SHIPPED, key).configuration
            try:
                choices = [choose(size, kernel, default, tools, config.quick) for kernel in KERNELS]
            except DefaultFailed as error:
                tools.report(f"{_name(key, size)}: not tuned, {error}")
                continue
            merge(
                out,
                {key: Entry(Configuration(*(choice.tile for choice in choices)), _record(size, machine, choices))},
            )
            done += 1
            tools.report(_line(key, size, choices))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done} of {len(sizes)} entries are in {out}") from None
    print(f"{done} entries in {out}")


def _record(size: TunedSize, machine: dict[str, str], choices: Sequence[Choice]) -> dict[str, Any]:
    """How an entry was tuned; times in microseconds."""
    record: dict[str, Any] = {**machine, "date": datetime.date.today().isoformat()}
    record |= {"columns": size.columns, "rows": size.rows}
    for kernel, choice in zip(KERNELS, choices, strict=True):
        record[kernel] = {"median_us": round(choice.seconds * 1e6, 2), "ratio_to_default": round(choice.ratio, 4)}
    return record


def _line(key: Key, size: TunedSize, choices: Sequence[Choice]) -> str:
    parts = [
        f"{kernel} {choice.tile} {choice.seconds * 1e6:.1f} us ({choice.ratio:.3f} of the default's)"
        for kernel, choice in zip(KERNELS, choices, strict=True)
    ]
    return f"{_name(key, size)}: {'; '.join(parts)}"


def _name(key: Key, size: TunedSize) -> str:
    return f"{key} (measured at {size.rows} x {size.columns})"


def merge(path: Path, entries: Table) -> None:
    """Put entries into a table's file, in place of those it has for the same keys; the file is replaced as a whole.

    What other processes merge at the same time is kept.

    Raises:
        UserError: it is damaged, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`out` must be a file that can be written, got {path} ({error.strerror})") from None
    with alone_with(path):
        together = {**(tile_tables.read_file(path) if path.exists() else {}), **entries}
        write_atomically(path, configurations.table_text(together).encode())
