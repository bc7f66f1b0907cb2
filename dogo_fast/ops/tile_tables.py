"""Which table of tiles counts: one that DOGO_FAST_TILES names, the user's own from ``dogo-fast tune``, the shipped one.

Entries of the earlier hide those of the later, key by key; a key that none has takes the default (dogo_fast/kernels/
configurations.py). The files are read once a process, when the first kernel is launched. From then on a choice is a
look-up in a dictionary: nothing is timed, nothing waits for the device, and it may happen in a capture.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from dogo_fast.errors import UserError
from dogo_fast.kernels import configurations
from dogo_fast.kernels.configurations import Configuration, Entry, Key, Table, TableError, Tile
from dogo_fast.ops import extension

VARIABLE = "DOGO_FAST_TILES"
FILE = "tiles.json"

INTERPRETED = Configuration(Tile(64, 64, 4, 2, 128), Tile(64, 64, 4, 2, 64))
"""Where there is no GPU: the interpreter's cost is by program, and it spills nothing."""
INTERPRETED_FLOAT32 = Configuration(Tile(32, 32, 4, 2), Tile(32, 32, 4, 2))
"""The sides that float32 has on GPUs: how a sum is cut decides its last digits, which float32 is tested for."""

_forced: list[Configuration | Table] = []


def cached_file() -> Path | None:
    """Where the user's own table lies, whether or not it is there: in ``~/.cache/dogo_fast``, or as for the C++ kernels
    DOGO_FAST_CACHE or XDG_CACHE_HOME say; None where there is no home folder."""
    try:
        return extension.cache_folder() / FILE
    except extension.ExtensionError:
        return None


def read_file(path: Path) -> dict[Key, Entry]:
    """The entries of a file.

    Raises:
        UserError: it is missing, cannot be read or is damaged.
    """
    try:
        entries: dict[Key, Entry] = configurations.read_table(path.read_text(encoding="utf-8"), str(path))
        return entries
    except TableError as error:
        raise UserError(f"{error}; correct it, or remove it to do without") from None
    except RecursionError:  # of Python's reader of JSON
        raise UserError(f"{path} is not a table of tiles: nested too deeply; remove it to do without") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a table of tiles: no text; remove it to do without") from None
    except OSError as error:
        raise UserError(f"{path}, a table of tiles, cannot be read ({error.strerror})") from None


@functools.cache
def table() -> dict[Key, Entry]:
    """What counts in this process.

    Raises:
        UserError: the file that DOGO_FAST_TILES names or the user's own is damaged, or the former missing.
    """
    together: dict[Key, Entry] = dict(configurations.SHIPPED)
    cached = cached_file()
    if cached is not None and cached.is_file():
        together |= read_file(cached)
    if named := os.environ.get(VARIABLE):
        path = Path(named).expanduser()
        if not path.is_file():
            raise UserError(f"the environment variable {VARIABLE} must name a file, got {named}")
        together |= read_file(path)
    return together


def configuration(architecture: str, dtype: str, width: int, rows: int) -> Configuration:
    """The tiles of one problem.

    Args:
        architecture: as ``"sm_90"``; one that no table knows gets the default, "" the interpreter's tiles.
        dtype: of the products, the first of configurations.DTYPES that a peer has.
        width: padded columns, the wider peer's.
        rows: of the larger view.

    Raises:
        UserError: see ``table``.
    """
    forced = _forced[-1] if _forced else None
    if isinstance(forced, Configuration):
        return forced
    if not architecture:
        return INTERPRETED_FLOAT32 if dtype == "float32" else INTERPRETED
    counts = table() if forced is None else forced
    return configurations.look_up(counts, configurations.bucket(architecture, dtype, width, rows)).configuration


@contextlib.contextmanager
def forced(choice: Configuration | Table) -> Iterator[None]:
    """Take these tiles, or this table alone, meanwhile, in every thread: for tuning, reports and tests."""
    _forced.append(choice)
    try:
        yield
    finally:
        _forced.pop()
