"""Tile configurations: tables, so that nothing is tuned (or synchronised) while a CUDA graph is captured.

``tiles.json`` beside this file is the table that is shipped; ``dogo-fast tune`` writes others of the same form for the
user's own GPU (dogo_fast/ops/tile_tables.py says where they lie). A key is (architecture, dtype of the products, bucket
of widths, bucket of rows). Entries whose architecture is "any" are the default for every key that has no own one: they
were chosen to compile without spilling on sm_80, sm_90, sm_100 and sm_120 and to fit the 99 KiB of shared memory that
a program may have on sm_86, sm_89 and sm_120.

The dtype is in the key, not only its size: float16 weights are widened to tf32 before they are multiplied (see
dogo_backward.py), so that its gradient compiles to other instructions. docs/tuning.md says what was compiled.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROW_MULTIPLE = 128
"""Views are padded to a multiple of this many rows, which every block size divides."""

DTYPES = ("float32", "float16", "bfloat16")
"""Of products, the hungriest first: two peers' different dtypes take the tiles of the first."""
WIDE = 1 << 30
"""The bucket of rows of several chunks, however many."""
WIDTHS = {"bfloat16": (64, 128, 256, WIDE), "float16": (64, 128, 256, WIDE), "float32": (64, 128, WIDE)}
"""Buckets of padded columns, each named after its widest."""
ROWS = (0, 512, 2048, 8192)
"""Buckets of rows in the larger view, each named after its fewest."""
ANY = "any"
"""In place of an architecture: the default."""

SIDES = (16, 32, 64, 128)
"""What a tile's rows and keys may be: tl.dot takes 16 at the least, ROW_MULTIPLE is the most."""
OWN_SIDES = (64, 128, 256)
"""What a tile's rows in a view's own square may be."""
WARPS = (1, 2, 4, 8, 16)
STAGES = (1, 2, 3, 4, 5)
MOST_SPLITS = 16
OWN_GROUPS = 4
CROSS_GROUPS = 8
"""Groups of row blocks that share their column sums, in a view's own square and in the square across. With 8 warps the
sums are 100 numbers a row, 1.6 × bfloat16 inputs of 128 columns; a slot for every block of 32768 rows were 1.6 GB."""
FORMAT = "dogo_fast tiles"
VERSION = 1


class Tile(NamedTuple):
    """BLOCK_M rows owned by a program, BLOCK_N keys a step, and how Triton runs it. With ``own_rows``, those of a
    program of a view's own square, the work is divided by squares where the loss allows (dogo_forward.py), else by rows
    with the same tile."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    own_rows: int = 0

    def __str__(self) -> str:
        own = f" and {self.own_rows}x{self.keys}" if self.own_rows else ""
        return f"{self.rows}x{self.keys}{own}, {self.num_warps} warps, {self.num_stages} stages"


class Configuration(NamedTuple):
    """The tiles of the two kernels that see every pair of rows."""

    statistics: Tile
    gradient: Tile


class Key(NamedTuple):
    """What tiles depend on: ``architecture`` as "sm_90" or ANY, ``dtype`` of DTYPES, ``width`` one of its WIDTHS,
    ``rows`` one of ROWS."""

    architecture: str
    dtype: str
    width: int
    rows: int

    def __str__(self) -> str:
        narrower = [width for width in WIDTHS[self.dtype] if width < self.width]
        columns = f"{narrower[-1]} < D" if narrower else "D"
        columns += "" if self.width == WIDE else f" <= {self.width}"
        return f"{self.architecture} {self.dtype} {columns}, N >= {self.rows}"


class Entry(NamedTuple):
    """A configuration, and the record of its tuning: None where only compile reports speak for it."""

    configuration: Configuration
    tuned: dict[str, Any] | None


Table = Mapping[Key, Entry]


class TableError(ValueError):
    """A table of tiles that cannot be used: the message names the file and the entry."""


def bucket(architecture: str, dtype: str, width: int, rows: int) -> Key:
    """The key for padded rows of ``width`` columns (the wider peer's) and ``rows`` rows in the larger view."""
    return Key(
        architecture,
        dtype,
        next(widest for widest in WIDTHS[dtype] if width <= widest),
        next(fewest for fewest in reversed(ROWS) if rows >= fewest),
    )


def look_up(table: Table, key: Key) -> Entry:
    """The entry of a key, else the default's."""
    return table.get(key) or table[key._replace(architecture=ANY)]


def read_table(text: str, source: str) -> dict[Key, Entry]:
    """The entries of a table in JSON, one for every key.

    An entry covers a range of rows: from ``rows_from`` (0 if it is not there) to below ``rows_below`` (no limit if it
    is not there), both among ROWS. ``width`` is a bucket's widest row, or "wide".

    Args:
        text: the file's content.
        source: what messages call the file.

    Raises:
        TableError: no JSON, another format or version, an entry that is not whole or not allowed, or two for one key.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise TableError(f"{source} is not a table of tiles: no JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("entries"), list):
        raise TableError(f'{source} is not a table of tiles: it must have "format": "{FORMAT}" and a list "entries"')
    if type(content.get("version")) is not int or content["version"] != VERSION:  # true and 1.0 are equal to 1
        raise TableError(f"{source} must be of version {VERSION}, got {content.get('version')!r}: tune again")
    table: dict[Key, Entry] = {}
    for number, record in enumerate(content["entries"]):
        where = f"{source}, entry {number} (counted from 0)"
        for key, entry in _read_entry(record, where):
            if key in table:
                raise TableError(f"{where}: an earlier entry is for {key} too")
            table[key] = entry
    return table


def _read_entry(record: Any, where: str) -> Iterable[tuple[Key, Entry]]:
    if not isinstance(record, dict):
        raise TableError(f"{where} must be an object, got {record!r}")
    known = {"architecture", "dtype", "width", "rows_from", "rows_below", "tuned", *Configuration._fields}
    if unknown := sorted(set(record) - known):
        raise TableError(f"{where} must have no other fields than {', '.join(sorted(known))}, got {unknown[0]!r}")
    architecture = record.get("architecture")
    if not isinstance(architecture, str) or not re.fullmatch(r"sm_\d+|gfx\w+|any", architecture):
        raise TableError(f"{where}: architecture must be like sm_90 or gfx942, or any, got {architecture!r}")
    dtype = _choice(record, "dtype", DTYPES, where)
    widths = {"wide" if width == WIDE else width: width for width in WIDTHS[dtype]}
    width = widths[_choice(record, "width", tuple(widths), where)]
    first = ROWS.index(_choice({"rows_from": 0, **record}, "rows_from", ROWS, where))
    below = {rows: place for place, rows in enumerate(ROWS[1:], 1)} | {None: len(ROWS)}
    last = below[_choice({"rows_below": None, **record}, "rows_below", tuple(below), where)]
    if first >= last:
        raise TableError(f"{where}: rows_from must be less than rows_below, got {ROWS[first]} and {ROWS[last]}")
    tuned = record.get("tuned")
    if tuned is not None and not isinstance(tuned, dict):
        raise TableError(f"{where}: tuned must be null or an object, got {tuned!r}")
    entry = Entry(Configuration(*(_read_tile(record, kernel, where) for kernel in Configuration._fields)), tuned)
    return [(Key(architecture, dtype, width, rows), entry) for rows in ROWS[first:last]]


def _read_tile(record: dict[str, Any], kernel: str, where: str) -> Tile:
    tile = record.get(kernel)
    if not isinstance(tile, dict) or {*tile, "own_rows"} != {"rows", "keys", "warps", "stages", "own_rows"}:
        names = "rows, keys, warps and stages, and own_rows where the work is divided by squares"
        raise TableError(f"{where}: {kernel} must be an object of {names}, got {tile!r}")
    where = f"{where}, {kernel}"
    sides = (_choice(tile, "rows", SIDES, where), _choice(tile, "keys", SIDES, where))
    read = Tile(*sides, _choice(tile, "warps", WARPS, where), _choice(tile, "stages", STAGES, where))
    if "own_rows" in tile:
        read = read._replace(own_rows=_choice(tile, "own_rows", OWN_SIDES, where))
        if not divisible_by_squares(read):
            raise TableError(f"{where}: rows and own_rows must be 16 a warp at the least, got {tile!r}")
    return read


def divisible_by_squares(tile: Tile) -> bool:
    """Whether every warp has 16 rows at the least of a tile and of one in a view's own square, and whole tiles of keys
    lie in the latter."""
    return min(tile.rows, tile.own_rows) >= 16 * tile.num_warps and tile.own_rows % tile.keys == 0


def _choice(record: dict[str, Any], name: str, allowed: tuple[Any, ...], where: str) -> Any:
    value = record.get(name)
    if isinstance(value, (bool, float)) or not (isinstance(value, (int, str)) or value is None) or value not in allowed:
        names = ", ".join(json.dumps(each) for each in allowed)
        raise TableError(f"{where}: {name} must be one of {names}, got {value!r}")
    return value


def table_text(table: Table) -> str:
    """The JSON that ``read_table`` reads, an entry a key and line."""
    lines = [json.dumps(_record(key, entry)) for key, entry in sorted(table.items(), key=lambda item: item[0])]
    head = f'"format": {json.dumps(FORMAT)},\n"version": {VERSION},\n"entries": ['
    return "{\n" + head + ",".join(f"\n{line}" for line in lines) + "\n]\n}\n"


def _record(key: Key, entry: Entry) -> dict[str, Any]:
    place = ROWS.index(key.rows)
    record: dict[str, Any] = {"architecture": key.architecture, "dtype": key.dtype}
    record["width"] = "wide" if key.width == WIDE else key.width
    record |= {"rows_from": key.rows, "rows_below": ROWS[place + 1] if place + 1 < len(ROWS) else None}
    for kernel, tile in entry.configuration._asdict().items():
        names = ("rows", "keys", "warps", "stages", "own_rows")
        record[kernel] = dict(zip(names, tile if tile.own_rows else tile[:-1], strict=False))
    return record | {"tuned": entry.tuned}


SHIPPED: dict[Key, Entry] = read_table(
    Path(__file__).with_name("tiles.json").read_text(encoding="utf-8"), "tiles.json of dogo_fast.kernels"
)
"""The table that comes with the package; it has every key of the default."""


def padded_rows(rows: int) -> int:
    """Rows of a view in the padded buffer."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def row_chunk(D: int, itemsize: int) -> int:
    """BLOCK_D: columns of a row held at once, a power of two from 16 to 256 (two bytes a number) or 128 (four)."""
    widest = 256 if itemsize == 2 else 128
    whole = max(16, 1 << (D - 1).bit_length())
    return whole if whole <= widest else 128


def product_chunk(D: int, itemsize: int) -> int:
    """Columns a cosine is summed at a time. Four-byte products are made from registers when they must be exact: 128
    columns at once spilled 7,216 bytes a thread in the statistics kernel on sm_90, 32 none."""
    return min(row_chunk(D, itemsize), 256 if itemsize == 2 else 32)


def padded_width(D: int, itemsize: int) -> int:
    """WIDTH: columns of a row in the padded buffer, a multiple of its chunk."""
    chunk = row_chunk(D, itemsize)
    return -(-D // chunk) * chunk


def column_splits(row_blocks: int, keys: int, tile: Tile, multiprocessors: int) -> int:
    """Column ranges a row block's keys are split into, so that small batches still occupy the device."""
    return max(1, min(2 * multiprocessors // row_blocks, -(-keys // tile.keys), MOST_SPLITS))


def square_splits(keys: int, tile: Tile) -> int:
    """The same where the work is divided by squares: 128 programs across, of few groups of row blocks."""
    return max(1, min(-(-keys // tile.keys), MOST_SPLITS))


def square_numbers(splits: int, pad_a: int, pad_b: int, tile: Tile) -> int:
    """Numbers that the sums of a peer's rows and columns take by squares: Places in dogo_forward.py."""
    own = (splits + OWN_GROUPS * tile.num_warps) * (pad_a + pad_b)
    return own + (splits + 1) * pad_a + CROSS_GROUPS * tile.num_warps * pad_b
