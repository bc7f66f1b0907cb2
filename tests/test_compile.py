"""Every kernel in every configuration of the table compiles for every supported GPU, without one.

Compilation runs in a process of its own, since the interpreter's switch is read when the kernels are defined.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from dogo_fast.bench.reports import compile_report

COLUMNS = re.compile(
    r"(?P<target>\S+) +(?P<loss>\S+) +(?P<dtype>\S+) +(?P<D>\d+) +(?P<N>\d+) +(?P<variant>\S+) +(?P<kernel>\w+) +"
    r"(?P<tile>\d+(?:x\d+)?)? +(?P<warps>\d+) +(?P<registers>\S+) +(?P<spilled>\S+) +(?P<shared>\d+) +(?P<HGMMA>\S+) +"
    r"\S+ +\S+(?P<spills>  spills)?$"
)


Asked = list[tuple[str, tuple[Any, ...]]]
"""Targets, each with a case."""

ALL: Asked = [(target, astuple(case)) for case in compile_report.cases() for target in compile_report.TARGETS]
QUICK: Asked = [
    ("sm_80", ("dogo_loss", "float32", 128, 256, "static")),
    *(("sm_90", ("dogo_loss", "bfloat16", 128, N, "static")) for N in (256, 4096)),
    *(("sm_90", ("augment", "bfloat16", size, 256, recipe)) for size, recipe in ((32, "cifar"), (96, "simclr"))),
    ("sm_90", ("augment", "bfloat16", 224, 256, "simclr")),
    ("sm_100", ("similarity_kl", "bfloat16", 128, 4096, "learnt")),
    ("sm_120", ("nt_xent", "bfloat16", 128, 4096, "rows")),
    ("gfx942", ("dogo_loss", "float16", 128, 4096, "static")),
]
"""Every target, dtype, loss and kernel, and on sm_90 what the tests below look at: nothing compiled before takes half a
minute on two cores, and ALL four."""

COMPILE_QUICK = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from dogo_fast.bench.reports.compile_report import compile_case, line
from dogo_fast.ops.compiling import KernelCase
with ProcessPoolExecutor() as pool:
    jobs = [pool.submit(compile_case, KernelCase(*case), (target,)) for target, case in json.loads(sys.argv[1])]
    for job in jobs:
        print(*map(line, job.result()), sep="\\n")
"""


@pytest.fixture(scope="module", params=[QUICK, pytest.param(ALL, marks=pytest.mark.whole)], ids=["quick", "whole"])
def asked(request: pytest.FixtureRequest) -> Asked:
    return list(request.param)


@pytest.fixture(scope="module")
def rows(asked: Asked, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The report that ``make compile-report`` prints, as rows; in the quick form its lines for what is asked."""
    assert set(asked) <= set(ALL)
    path: Path = tmp_path_factory.mktemp("report") / "report.txt"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    whole = ["-m", "dogo_fast.bench.reports.compile_report", "--out", str(path)]
    command = [sys.executable, *(whole if asked == ALL else ["-c", COMPILE_QUICK, json.dumps(asked)])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    text = path.read_text() if asked == ALL else done.stdout
    matches = [COLUMNS.match(line) for line in text.splitlines()]
    return [match.groupdict() for match in matches if match]


def test_every_configuration_compiles_for_every_target(asked: Asked, rows: list[dict[str, str]]) -> None:
    cases = list(compile_report.cases())
    assert {(case.dtype, case.D) for case in cases if case.loss == "dogo_loss"} == {
        *(("bfloat16", D) for D in (128, 256, 1024)),
        ("float16", 128),
        ("float32", 128),
    }
    seen = {(row["target"], row["loss"], row["dtype"], int(row["D"]), int(row["N"]), row["variant"]) for row in rows}
    assert seen == {(target, *case) for target, case in asked}
    kernels = {row["kernel"] for row in rows}
    assert kernels == {
        "normalize_kernel",
        "statistics_kernel",
        "finalize_kernel",
        "gradient_kernel",
        "finish_kernel",
        "temperature_gradient_kernel",
        "augment_kernel",
    }


def test_hopper_uses_its_tensor_cores_without_spilling_at_the_usual_width(rows: list[dict[str, str]]) -> None:
    hopper = [row for row in rows if row["target"] == "sm_90" and row["dtype"] != "float32" and row["D"] == "128"]
    tiled = [row for row in hopper if "x" in (row["tile"] or "")]
    assert {(row["N"], row["kernel"]) for row in tiled} >= {
        (N, kernel) for N in ("256", "4096") for kernel in ("statistics_kernel", "gradient_kernel")
    }
    for row in hopper:
        assert int(row["spilled"]) == 0, row
    for row in tiled:
        rows_of_tile = int((row["tile"] or "").partition("x")[0])
        assert (int(row["HGMMA"]) > 0) == (rows_of_tile >= 64), row  # fewer are multiplied as on older GPUs


def test_views_are_made_in_registers(rows: list[dict[str, str]]) -> None:
    """On a GPU like Hopper, sixteen warps a multiprocessor at the least, and nothing spilled."""
    views = [row for row in rows if row["loss"] == "augment" and row["target"] == "sm_90"]
    assert {row["D"] for row in views} == {"32", "96", "224"}
    for row in views:
        warps = int(row["warps"])
        assert int(row["spilled"]) == 0 and 65536 // (32 * warps * int(row["registers"])) * warps >= 16, row


def test_shared_memory_fits_every_target(rows: list[dict[str, str]]) -> None:
    """What a program may have: 163 KiB on sm_80, 227 KiB on sm_90 and sm_100, 99 KiB on sm_120, 64 KiB on gfx942."""
    limits = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}
    for row in rows:
        assert int(row["shared"]) <= 1024 * limits[row["target"]], row
