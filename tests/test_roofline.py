"""The static roofline: from counts to clocks by hand, and of kernels that are really compiled for sm_90."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sass import sass

from dogo_fast.bench.per_kernel import PASSES
from dogo_fast.bench.reports import roofline
from dogo_fast.bench.reports.machine_code import Counts, loops, parse
from dogo_fast.bench.reports.roofline import Prediction
from dogo_fast.bench.reports.tile_clocks import (
    PRODUCTS,
    LoopPrediction,
    Tiles,
    pipe_clocks,
    predict_loop,
)
from dogo_fast.bench.work import TileLoop

RECORDED = Path(__file__).parents[1] / "bench" / "results"

COMPILE = """
from dogo_fast.ops.compiling import KernelCase
from dogo_fast.bench.reports.roofline import Report, predict_case
cases = [KernelCase(loss, "bfloat16", 128, 4096, "static") for loss in ("dogo_loss", "nt_xent")]
print(Report(predictions=[each for case in cases for each in predict_case(case)[0]]).model_dump_json())
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, where kernels can be compiled."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
    return subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], Prediction]:
    """Predictions of the tiled kernels by loss and kernel."""
    done = run("-c", COMPILE)
    assert done.returncode == 0, done.stderr[-4000:]
    found = roofline.Report.model_validate_json(done.stdout.splitlines()[-1])
    return {(each.case.loss, each.kernel): each for each in found.predictions}


# loss, kernel: FLOP and exponentials an element of each of its loops, how many there are, clocks of the needed work for
# each pair: the larger of FLOP / 4096 and exponentials / 16
TRUTH = {
    ("dogo_loss", "statistics_kernel"): ({(256, 1): 2, (512, 4): 1}, 6 / 16),
    ("dogo_loss", "gradient_kernel"): ({(512, 1): 1, (1024, 4): 2}, 24 * 128 / 4096),
    ("nt_xent", "statistics_kernel"): ({(256, 1): 2}, 4 * 128 / 4096),
    ("nt_xent", "gradient_kernel"): ({(512, 1): 4}, 12 * 128 / 4096),
}


@pytest.mark.parametrize(("loss", "kernel"), TRUTH)
def test_compiled_loops_have_the_work_of_their_tiles(
    compiled: dict[tuple[str, str], Prediction], loss: str, kernel: str
) -> None:
    """Nothing spilled or serialised, every product accounted for, one exponential an element of NT-Xent, two of the
    KL's peers."""
    found, (loop_kinds, least) = compiled[loss, kernel], TRUTH[loss, kernel]
    assert found.unmatched == [] and found.stack == 0 and not found.serialised
    counted = Counter((loop.per_element["flop"], loop.per_element["exp2"]) for loop in found.loops)
    assert counted == loop_kinds
    for loop in found.loops:
        assert loop.tiles_an_iteration == 1
        # a tile of 128 × 64, or of 256 × 64 in a view's own square: what its FLOP and exponentials take at the least
        elements = 64 * (256 if kernel == "statistics_kernel" and loop.name.startswith("own") else 128)
        assert loop.clocks["tensor"] == pytest.approx(elements * loop.per_element["flop"] / 4096)
        assert loop.clocks["special"] == pytest.approx(elements * loop.per_element["exp2"] / 16)
        assert max(loop.clocks.values()) <= loop.in_turns * (1 + 1e-12)
        assert loop.clocks["issue"] == pytest.approx(elements * loop.per_element["issued"] / 128)
    assert found.clocks_needed == pytest.approx(least)
    overlapped, in_turns = found.shares
    assert overlapped == pytest.approx(least / found.clocks_overlapped) and 0 < in_turns <= overlapped < 1


def test_compiled_kernels_take_the_clocks_of_their_tiles(compiled: dict[tuple[str, str], Prediction]) -> None:
    """N = 4096: each of NT-Xent's four squares of pairs (or eight, of two peers) once, at its loops' mean."""
    found = compiled["nt_xent", "gradient_kernel"]
    tile = [max(loop.clocks.values()) for loop in found.loops]
    assert found.clocks_overlapped == pytest.approx(4 * sum(tile) / len(tile) / (128 * 64))
    found = compiled["dogo_loss", "statistics_kernel"]
    by_exponentials: dict[float, list[float]] = {1.0: [], 4.0: []}
    for loop in found.loops:
        by_exponentials[loop.per_element["exp2"]].append(max(loop.clocks.values()))
    mean = {key: sum(values) / len(values) for key, values in by_exponentials.items()}
    # of each of four squares on its diagonal a half, and half of 16 blocks of 256 there
    own = 4 * (1 / 2 + 1 / 32) * mean[1.0] / (256 * 64)
    assert found.clocks_overlapped == pytest.approx(own + mean[4.0] / (128 * 64))


def test_clocks_of_each_pipe_by_hand() -> None:
    counts = Counts(
        Counter({"exp2": 3, "special": 1, "conversion": 2, "multiply": 2, "integer": 5, "packing": 1, "shuffle": 2}),
        Counter({"BF16": 4096, "TF32": 1024}), fp32=10, bank_bytes=1024,
    )  # fmt: skip
    assert pipe_clocks(counts, 8) == {
        "tensor": 8 * 4096 / 4096 + 8 * 1024 / 2048,
        "special": 256 * 6 / 16,
        "fp32": 256 * 12 / 128,
        "integer": 256 * 6 / 64,
        "issue": 16 * 8 / 4,
        "shared": (1024 * 8 + 2 * 4 * 256) / 128,
    }
    counts.classes["multiply"] = 40
    assert pipe_clocks(counts, 8)["fp32"] == 256 * 40 / 64  # at the integers' rate


def test_the_rates_are_those_that_are_published() -> None:
    """Dense bf16 of an H100 SXM, 989.4 TFLOP/s of 132 multiprocessors at 1.83 GHz, and fp32, 66.9 at 1.98."""
    for dtype, clock, flop in (("BF16", 1.83e9, 989.4e12), ("F32", 1.98e9, 66.9e12)):
        assert PRODUCTS[dtype] * 132 * clock == pytest.approx(flop, rel=5e-3)


# Loops matched by hand: tiles of 64 × 16, one warp a 16th of it; a HMMA has 4096 FLOP, so a tile of 32 columns 16

HMMA = "HMMA.16816.F32.BF16 R0, R1, R2, R3"
EXP = "MUFU.EX2 R0, R0"


def predicted(kinds: list[TileLoop], *lines: str) -> LoopPrediction | None:
    outer = loops(parse(sass(*lines)))[0]
    return predict_loop(outer, Tiles(64, 16, 4, kinds))


def test_an_unrolled_loop_has_several_tiles_an_iteration() -> None:
    kinds = [TileLoop("one", (32,), 1, 9), TileLoop("three", (32, 32, 32), 3, 9)]
    for number in (1, 2, 4):
        body = [HMMA] * (4 * number) + [EXP] * (8 * number)
        found = predicted(kinds, "MOV R0, RZ", "top: NOP", *body, "@P0 BRA {top}", "EXIT")
        assert found is not None and (found.name, found.tiles_an_iteration) == ("one", number)
        assert found.clocks["tensor"] == 64 * 16 * 2 * 32 / 4096 and found.clocks["special"] == 64 * 16 / 16
        assert found.per_element["flop"] == 64 and found.per_element["exp2"] == 1


def test_kinds_of_equal_products_differ_by_their_exponentials() -> None:
    kinds = [TileLoop("one", (32, 32), 1, 9), TileLoop("two", (32, 32), 2, 9)]
    for exponentials, name in ((8, "one"), (16, "two"), (17, "two"), (32, None)):
        found = predicted(kinds, "NOP", "top: NOP", *[HMMA] * 8, *[EXP] * exponentials, "@P0 BRA {top}", "EXIT")
        assert (found and found.name) == name


def test_loops_over_chunks_run_as_often_as_the_products_need() -> None:
    """128 columns in chunks of 32: the first one and one that was peeled off stand outside the loop, two within."""
    kinds = [TileLoop("wide", (128,), 1, 9)]
    for peeled, trips in ((0, 3), (1, 2)):
        own = [HMMA] * 4 * (1 + peeled)
        found = predicted(
            kinds, "NOP", "outer: NOP", *own, "inner: FADD R1, R1, R1", *[HMMA] * 4, "@P1 BRA {inner}", *[EXP] * 8,
            "@P0 BRA {outer}", "EXIT",
        )  # fmt: skip
        assert found is not None and found.per_element["flop"] == 256
        assert found.per_element["fp32"] * 8 == trips


def test_loops_over_chunks_that_look_alike_share_what_was_peeled_off() -> None:
    """Two products of 128 columns in chunks of 32: of eight, three stand outside, so five are left to two loops."""
    found = predicted(
        [TileLoop("two wide", (128, 128), 1, 9)], "NOP", "outer: NOP", *[HMMA] * 12, "first: FADD R1, R1, R1",
        *[HMMA] * 4, "@P1 BRA {first}", "second: FADD R1, R1, R1", *[HMMA] * 4, "@P1 BRA {second}", *[EXP] * 8,
        "@P0 BRA {outer}", "EXIT",
    )  # fmt: skip
    assert found is not None and found.per_element["flop"] == 512 and found.per_element["fp32"] * 8 == 5


def test_products_on_ordinary_lanes() -> None:
    """float32 in full precision: 64 × 16 × 32 multiply-adds are 256 a thread, of which two fifths run in a loop."""
    kinds = [TileLoop("full precision", (32,), 1, 9)]
    lines = ["NOP", "outer: NOP", *["FFMA R0, R1, R2, R0"] * 136, "inner: FFMA R0, R1, R2, R0",
             *["FFMA R0, R1, R2, R0"] * 63, "@P1 BRA {inner}", *[EXP] * 8, "@P0 BRA {outer}", "EXIT"]  # fmt: skip
    found = predicted(kinds, *lines)
    assert found is not None and found.per_element["fp32"] * 8 == 136 + 2 * 64 and found.clocks["tensor"] == 0


def test_products_on_both() -> None:
    """As the gradient beside float16 rows: cosines on the tensor cores, the other half on ordinary lanes."""
    lines = ["NOP", "top: NOP", *[HMMA] * 4, *["FFMA R0, R1, R2, R0"] * 264, *[EXP] * 8, "@P0 BRA {top}", "EXIT"]
    found = predicted([TileLoop("both", (32, 32), 1, 9)], *lines)
    assert found is not None and found.per_element["flop"] == 64 + 2 * 264 / 8
    assert predicted([TileLoop("one", (32,), 1, 9)], *lines) is not None  # FFMA are not counted to whole products
    assert predicted([TileLoop("three", (32, 32, 32), 1, 9)], *lines) is None


# The report


def test_the_interpreter_is_refused_in_one_line() -> None:
    done = run("-m", "dogo_fast.bench.reports.roofline", TRITON_INTERPRET="1")
    assert done.returncode == 1 and done.stderr == (
        "the kernels cannot be compiled while TRITON_INTERPRET=1 is set: unset it\n"
    )


def test_the_recorded_report_is_whole() -> None:
    """Every kernel of every case, all loops matched."""
    recorded = roofline.load_report(RECORDED / "roofline-sm_90.json")
    assert set(recorded.versions) == {"torch", "triton", "python", "commit"}
    assert "+" not in str(recorded.versions["commit"])
    cases = list(roofline.cases())
    assert [(each.case, each.kernel) for each in recorded.predictions] == [
        (case, name) for case in cases for name in PASSES
    ]
    assert [each.case for each in recorded.buffers] == cases
    assert all(each.bytes > 0 for each in recorded.buffers)
    for each in recorded.predictions:
        assert each.unmatched == [], each.case
        overlapped, in_turns = each.shares
        assert 0 < in_turns <= overlapped <= 1
