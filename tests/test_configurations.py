"""Tables of tiles: what they may hold, which entry counts, and that any tile there may be computes the same."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forms import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import check, projections

from dogo_fast import functional, reference
from dogo_fast.errors import UserError
from dogo_fast.kernels import configurations
from dogo_fast.kernels.configurations import (
    ANY,
    DTYPES,
    OWN_SIDES,
    ROW_MULTIPLE,
    ROWS,
    SHIPPED,
    SIDES,
    WIDE,
    WIDTHS,
    Configuration,
    Entry,
    Key,
    TableError,
    Tile,
    bucket,
    divisible_by_squares,
    look_up,
    padded_width,
    read_table,
    row_chunk,
    table_text,
)
from dogo_fast.ops import launches, tile_tables

pytestmark = pytest.mark.usefixtures("no_user_table")
ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
architectures = st.sampled_from(["sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942", "sm_999"])
sides = st.sampled_from(SIDES)
by_rows = st.builds(Tile, sides, sides, st.sampled_from([4, 8]), st.sampled_from([1, 2, 3]), st.just(0))
by_squares = st.builds(Tile._replace, by_rows, own_rows=st.sampled_from(OWN_SIDES)).filter(divisible_by_squares)
tiles = by_rows | by_squares


@given(architectures, st.sampled_from(DTYPES), st.integers(1, 5000), st.integers(1, 10**6))
def test_every_problem_has_tiles_that_fit_its_padding(architecture: str, dtype: str, D: int, rows: int) -> None:
    width = padded_width(D, ITEMSIZES[dtype])
    key = bucket(architecture, dtype, width, rows)
    assert width <= key.width and key.rows <= rows
    narrower = [each for each in WIDTHS[dtype] if each < key.width]
    assert all(width > each for each in narrower)
    assert all(rows < each for each in ROWS if each > key.rows)
    for tile in tile_tables.configuration(architecture, dtype, width, rows):
        assert ROW_MULTIPLE % tile.rows == 0 and ROW_MULTIPLE % tile.keys == 0
        assert tile.rows >= 16 and tile.keys >= 16 and tile.num_warps in (4, 8)


def test_wide_rows_are_those_of_several_chunks() -> None:
    """A kernel with one chunk and one with several are different code, so no bucket holds both."""
    for dtype, itemsize in ITEMSIZES.items():
        for D in (16, 17, 64, 65, 128, 129, 256, 257, 384, 2048):
            width = padded_width(D, itemsize)
            assert (width > row_chunk(D, itemsize)) == (bucket("sm_90", dtype, width, 2).width == WIDE)


def test_the_shipped_table_has_the_default_whole_and_entries_for_three_architectures_none_of_them_tuned() -> None:
    for architecture in (ANY, "sm_80", "sm_90", "sm_100"):
        for dtype, widths in WIDTHS.items():
            for key in (Key(architecture, dtype, width, rows) for width in widths for rows in ROWS):
                assert SHIPPED[key].tuned is None, key
    assert {key.architecture for key in SHIPPED} == {ANY, "sm_80", "sm_90", "sm_100"}


@given(
    st.dictionaries(
        st.builds(
            lambda architecture, dtype, width, rows: bucket(architecture, dtype, width, rows),
            architectures, st.sampled_from(DTYPES), st.integers(1, 2000), st.integers(1, 20000),
        ),
        st.builds(
            lambda first, second, tuned: Entry(Configuration(first, second), tuned),
            tiles, tiles, st.sampled_from([None, {"gpu": "one", "date": "2000-01-01"}]),
        ),
    )
)  # fmt: skip
def test_a_table_that_is_written_is_the_table_that_is_read(table: dict[Key, Entry]) -> None:
    assert read_table(table_text(table), "a file") == table


def one_entry(**changes: Any) -> str:
    tile = {"rows": 64, "keys": 32, "warps": 4, "stages": 2}
    entry = {"architecture": "sm_90", "dtype": "bfloat16", "width": 128, "statistics": tile, "gradient": tile}
    return json.dumps({"format": "dogo_fast tiles", "version": 1, "entries": [entry | {"tuned": None} | changes]})


def test_an_entry_covers_its_range_of_rows() -> None:
    assert {key.rows for key in read_table(one_entry(), "a file")} == set(ROWS)
    assert {key.rows for key in read_table(one_entry(rows_from=512, rows_below=8192), "a file")} == {512, 2048}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no JSON"]),
        ("[]", ['"format": "dogo_fast tiles"']),
        ('{"format": "dogo_fast tiles", "version": 1}', ['a list "entries"']),
        ('{"format": "dogo_fast tiles", "version": 2, "entries": []}', ["version 1, got 2"]),
        ('{"format": "dogo_fast tiles", "version": true, "entries": []}', ["version 1, got True"]),
        ('{"format": "dogo_fast tiles", "version": 1.0, "entries": []}', ["version 1, got 1.0"]),
        ('{"format": "dogo_fast tiles", "version": 1, "entries": [3]}', ["entry 0", "an object, got 3"]),
        (one_entry(architecture="hopper"), ["entry 0", "architecture must be like sm_90", "'hopper'"]),
        (one_entry(dtype="int8"), ["entry 0", "dtype must be one of", "'int8'"]),
        (one_entry(width=100), ["entry 0", 'width must be one of 64, 128, 256, "wide", got 100']),
        (one_entry(rows_from=500), ["rows_from must be one of 0, 512, 2048, 8192, got 500"]),
        (one_entry(rows_from=2048, rows_below=512), ["rows_from must be less than rows_below"]),
        (one_entry(speed=3), ["no other fields", "'speed'"]),
        (one_entry(gradient=None), ["gradient must be an object of rows, keys, warps and stages"]),
        (
            one_entry(gradient={"rows": 48, "keys": 32, "warps": 4, "stages": 2}),
            ["entry 0", "gradient: rows must be one of 16, 32, 64, 128, got 48"],
        ),
        (
            one_entry(statistics={"rows": 64, "keys": 32, "warps": True, "stages": 2}),
            ["statistics: warps must be one of", "got True"],
        ),
        (one_entry(tuned="yes"), ["tuned must be null or an object, got 'yes'"]),
        (one_entry()[:-3], ["no JSON"]),
    ],
)
def test_a_damaged_table_is_one_line_that_names_file_and_entry(
    text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TableError) as raised:
        read_table(text, "a file")
    assert str(raised.value).startswith("a file") and all(word in str(raised.value) for word in words), raised.value
    path = tmp_path / "mine.json"
    path.write_text(text)
    monkeypatch.setenv("DOGO_FAST_TILES", str(path))
    for _ in range(2):  # not only the first time
        with pytest.raises(UserError) as refused:
            tile_tables.configuration("sm_90", "bfloat16", 128, 64)
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_table_that_is_nested_too_deeply_is_one_line_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.json"
    monkeypatch.setenv("DOGO_FAST_TILES", str(path))
    deep = 100_000
    for text in ("[" * deep, one_entry().replace('"tuned": null', f'"tuned": {deep * "["}{deep * "]"}')):
        path.write_text(text)
        with pytest.raises(UserError) as refused:
            tile_tables.configuration("sm_90", "bfloat16", 128, 64)
        assert str(refused.value) == f"{path} is not a table of tiles: nested too deeply; remove it to do without"


def test_two_entries_for_one_key_are_refused() -> None:
    entries = json.loads(one_entry())["entries"] + json.loads(one_entry(rows_from=8192))["entries"]
    text = json.dumps({"format": "dogo_fast tiles", "version": 1, "entries": entries})
    with pytest.raises(TableError, match=r"entry 1 .*an earlier entry is for sm_90 bfloat16 64 < D <= 128, N >= 8192"):
        read_table(text, "a file")


def test_the_named_table_hides_the_users_own_and_that_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(rows: int) -> dict[str, Any]:
        return {"rows": rows, "keys": 16, "warps": 4, "stages": 1}

    def chosen(rows: int, architecture: str = "sm_90") -> Tile:
        tile_tables.table.cache_clear()
        return tile_tables.configuration(architecture, "bfloat16", 128, rows).gradient

    shipped = chosen(64)
    assert shipped == look_up(SHIPPED, bucket("sm_90", "bfloat16", 128, 64)).configuration.gradient
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tiles.json").write_text(one_entry(gradient=entry(16), rows_below=2048))
    assert [chosen(rows).rows for rows in (64, 600)] == [16, 16]
    named = tmp_path / "named.json"
    named.write_text(one_entry(gradient=entry(128), rows_below=512))
    monkeypatch.setenv("DOGO_FAST_TILES", str(named))
    assert [chosen(rows).rows for rows in (64, 600)] == [128, 16]
    assert chosen(4096) == SHIPPED[Key("sm_90", "bfloat16", 128, 2048)].configuration.gradient
    assert chosen(64, "sm_120") == SHIPPED[Key(ANY, "bfloat16", 128, 0)].configuration.gradient
    monkeypatch.setenv("DOGO_FAST_TILES", str(tmp_path / "nowhere.json"))
    with pytest.raises(UserError, match=r"DOGO_FAST_TILES must name a file, got .*nowhere\.json"):
        chosen(64)


def test_peers_of_different_dtypes_take_the_tiles_of_the_hungrier(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(tile_tables, "configuration", lambda *key: asked.append(key) or tile_tables.INTERPRETED)
    a, b = projections(20, 48, dtype=torch.bfloat16)
    for dtype in (torch.float16, torch.float32):
        c, d = projections(20, 160, dtype=dtype)
        with launches.pretending(launches.Device("sm_90", 132)):
            functional.dogo_loss((a, b), (c, d), 0.5, 0.1, backend="triton")
    assert set(asked) == {("sm_90", "float16", 256, 20), ("sm_90", "float32", 256, 20)}


@settings(max_examples=examples(5), deadline=None)
@given(tiles, tiles, st.sampled_from([(5, 20), (40, 24), (10, 300)]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_tile_computes_the_loss(first: Tile, second: Tile, size: tuple[int, int], dtype: torch.dtype) -> None:
    """To the bar of all numerical tests; the compiler's side of a tile, warps and stages, plays no part here."""
    if torch.cuda.is_available():
        pytest.skip("the kernels are compiled for the GPU here, which not every tile fits")
    inputs = projections(*size, count=4, dtype=dtype)

    def fused(*x: torch.Tensor) -> torch.Tensor:
        return functional.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, 0.1, backend="triton").loss

    def dense(*x: torch.Tensor) -> torch.Tensor:
        return reference.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, 0.1).loss

    with tile_tables.forced(Configuration(first, second)), launches.recorded() as launched:
        check(fused, dense, inputs)
    tiles = [each.tile for each in launched if each.tile]
    assert tiles == [f"{first.rows}x{first.keys}", f"{second.rows}x{second.keys}"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU here: test_gpu.py")
@pytest.mark.parametrize("D", [20, 300])
def test_a_block_of_a_view_s_own_square_that_reaches_beyond_the_buffer_touches_nothing_there(D: int) -> None:
    """256 rows of a view of 70, which is padded to 128, and of one of 260, to 384; whole rows, and several chunks."""
    tile = Tile(64, 32, 4, 2, 256)
    for N in (70, 260) if D == 20 else (70,):
        inputs = projections(N, D, count=4, dtype=torch.bfloat16)

        def fused(*x: torch.Tensor) -> torch.Tensor:
            return functional.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, 0.1, backend="triton").loss

        def dense(*x: torch.Tensor) -> torch.Tensor:
            return reference.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, 0.1).loss

        with tile_tables.forced(Configuration(tile, tile)), within_buffers():
            check(fused, dense, inputs)


@contextlib.contextmanager
def within_buffers() -> Iterator[None]:
    """What the interpreter reads and writes lies in the tensors that the launch was given."""
    from triton.runtime.interpreter import InterpreterBuilder

    given: list[tuple[int, int]] = []

    def note(launch: launches.Launch) -> None:
        tensors = [value for value in launch.values.values() if isinstance(value, torch.Tensor)]
        given[:] = [(each.data_ptr(), each.data_ptr() + each.nbytes) for each in tensors]

    def checked(access: Any, place: int) -> Any:
        def check_first(builder: Any, pointers: Any, *rest: Any) -> Any:
            addresses = pointers.data[np.broadcast_to(rest[place].data, pointers.data.shape)]
            inside = np.zeros(addresses.shape, bool)
            for begin, end in given:
                inside |= (addresses >= begin) & (addresses < end)
            assert inside.all(), f"{(~inside).sum()} of {inside.size} addresses lie in no buffer"
            return access(builder, pointers, *rest)

        return check_first

    with pytest.MonkeyPatch.context() as patch, launches.listening(note):
        for name, place in (("create_masked_load", 0), ("create_masked_store", 1)):
            patch.setattr(InterpreterBuilder, name, checked(getattr(InterpreterBuilder, name), place))
        yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU here: test_gpu.py")
@pytest.mark.parametrize("loss", ["nt_xent", "dogo_loss"])
def test_by_squares_row_blocks_add_to_the_column_sums_of_their_group(loss: str) -> None:
    """Nine row blocks across and five of a view's own square: two a group, groups without any, and a block that reaches
    over the ends of splits and of the view."""
    tile = Tile(32, 32, 2, 2, 64)
    inputs = projections(270, 20, count=4 if loss == "dogo_loss" else 2)

    def fused(*x: torch.Tensor) -> torch.Tensor:
        if loss == "nt_xent":
            return functional.nt_xent(*x, 0.2, backend="triton")
        return functional.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, 0.1, kd_weight=(0.0, 2.0), backend="triton").loss

    def dense(*x: torch.Tensor) -> torch.Tensor:
        if loss == "nt_xent":
            return reference.nt_xent(*x, 0.2)
        return reference.dogo_loss((x[0], x[1]), (x[2], x[3]), 0.5, 0.1, kd_weight=(0.0, 2.0)).loss

    with tile_tables.forced(Configuration(tile, tile)), launches.recorded() as launched:
        check(fused, dense, inputs)
        bits = [fused(*inputs) for _ in range(2)]
    assert torch.equal(*bits)
    assert ("finish_kernel" in [each.name for each in launched]) == (loss == "dogo_loss")


SQUARES = Configuration(Tile(128, 64, 8, 3, 256), Tile(128, 64, 8, 2, 128))


@pytest.mark.parametrize(
    ("settings", "own_rows"),
    [({}, (256, 128)), ({"temperature": 0.02}, (0, 0)), ({"kd_temperature": 0.02}, (0, 0))],
    ids=["static", "online", "online kd"],
)
def test_the_work_is_divided_by_squares_only_with_constant_shifts(
    settings: dict[str, float], own_rows: tuple[int, int]
) -> None:
    assert own_rows_of([torch.zeros(300, 32, requires_grad=True) for _ in range(4)], settings) == own_rows


def test_learnt_temperatures_are_divided_by_rows() -> None:
    tau = torch.tensor(0.5, requires_grad=True)
    assert own_rows_of([torch.zeros(300, 32, requires_grad=True) for _ in range(4)], {"temperature": tau}) == (0, 0)


@pytest.mark.parametrize(
    ("widths", "dtypes"),
    [
        ((32, 64), (torch.bfloat16, torch.bfloat16)),
        ((32, 32), (torch.bfloat16, torch.float16)),
        ((512, 512), (torch.bfloat16, torch.bfloat16)),
    ],
    ids=["widths", "dtypes", "wide"],
)
def test_gradients_of_unlike_peers_or_of_wide_rows_are_made_by_rows(
    widths: tuple[int, int], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    peers = zip(widths, dtypes, strict=True)
    views = [torch.zeros(300, width, dtype=dtype, requires_grad=True) for width, dtype in peers for _ in range(2)]
    assert own_rows_of(views, {}) == (256, 0)


def own_rows_of(views: list[torch.Tensor], settings: dict[str, Any]) -> tuple[int, int]:
    """Of the statistics and of the gradient kernel in a pass of the whole loss; 0 by rows."""
    with tile_tables.forced(SQUARES), launches.pretending(launches.Device("sm_90", 132)) as launched:
        loss = functional.dogo_loss((views[0], views[1]), (views[2], views[3]), backend="triton", **settings).loss
        torch.autograd.grad(loss, views)
    found = {each.name: each.values["OWN_M"] for each in launched if each.tile}
    return found["statistics_kernel"], found["gradient_kernel"]


def test_sides_divide_the_padding() -> None:
    assert all(ROW_MULTIPLE % side == 0 for side in SIDES)
    assert configurations.padded_rows(1) == ROW_MULTIPLE
