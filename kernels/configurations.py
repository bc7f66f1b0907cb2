"""Tile configurations: a fixed table, so that nothing is tuned (or synchronised) while a CUDA graph is captured.

Chosen from what the compiler reports (``python -m dogo_fast.compile_report``: registers, spills, shared memory,
instructions), not from timings: none has run on a GPU yet. All compile for sm_80, sm_90, sm_100 and gfx942 and fit
their shared memory; up to 128 sixteen-bit columns none spills on sm_90.
"""

from typing import NamedTuple

ROW_MULTIPLE = 128
"""Views are padded to a multiple of this many rows, which every block size divides."""


class Tile(NamedTuple):
    """BLOCK_M rows owned by a program, BLOCK_N keys a step, and how Triton runs it."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


class Configuration(NamedTuple):
    """The tiles of the two kernels that see every pair of rows."""

    statistics: Tile
    gradient: Tile


LARGE_BATCH = 2048
"""Rows in a view from which the tiles are sized for throughput; below, for having enough programs."""

WIDE = 4096
"""The entry for rows of several chunks, however many."""

# (bytes a number, widest row, large batch) -> tiles; narrower rows take the tiles of the next wider entry
TABLE = {
    (2, 128, False): Configuration(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)),
    (2, 128, True): Configuration(Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
    (2, 256, False): Configuration(Tile(64, 32, 4, 2), Tile(64, 32, 8, 2)),
    (2, 256, True): Configuration(Tile(64, 32, 4, 2), Tile(64, 32, 8, 2)),
    (2, WIDE, False): Configuration(Tile(64, 64, 4, 2), Tile(64, 32, 8, 2)),
    (2, WIDE, True): Configuration(Tile(64, 64, 4, 2), Tile(64, 32, 8, 2)),
    (4, WIDE, False): Configuration(Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
    (4, WIDE, True): Configuration(Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
}

# Where one architecture does better than the others. 128 × 64 gradients read each key tile half as often; they fit
# Hopper's registers without spilling, but spill 688 bytes a thread on sm_80 and 168 on sm_100.
BY_ARCHITECTURE = {
    ("sm_90", 2, 128, True): Configuration(Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
}


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


def configuration(architecture: str, width: int, itemsize: int, rows: int) -> Configuration:
    """The tiles for padded rows of ``width`` columns (the wider peer's) and ``rows`` rows in the larger view.

    ``architecture``: as ``"sm_90"``; one that the table does not know gets tiles that suit them all.
    """
    widths = [entry for bytes_each, entry, _ in TABLE if bytes_each == itemsize and entry >= min(width, WIDE)]
    key = itemsize, min(widths), rows >= LARGE_BATCH
    return BY_ARCHITECTURE.get((architecture, *key), TABLE[key])


def column_splits(row_blocks: int, keys: int, tile: Tile, multiprocessors: int) -> int:
    """Column ranges a row block's keys are split into, so that small batches still occupy the device."""
    return max(1, min(2 * multiprocessors // row_blocks, -(-keys // tile.keys), 16))
