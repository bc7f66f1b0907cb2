"""Options and records of the suite: pytest bench --grid short --record=FILE, or dogo-fast benchmark.

The record is written anew after each case, so that one that is killed leaves what it had measured.
"""

import contextlib
import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dogo_fast.atomic import write_atomically
from dogo_fast.errors import UserError

from . import grid as grids
from . import machine

ORDER = ("dogo_loss", "step", "augment", "pretraining", "nt_xent", "similarity_kl", "streaming")
"""The suites, what the project is for first: with --minutes the last ones may not have their turn."""
PR_SET_PDEATHSIG = 1
BEGAN = pytest.StashKey[float]()
MACHINE = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--grid", choices=grids.GRIDS, default="short", help="which sizes are measured")
    parser.addoption("--minutes", type=float, help="begin no further case after so long")
    parser.addoption("--record", type=Path, help="what was measured, written after each case")
    parser.addoption("--parent", type=int, help="end when this process, which started this one, does")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BEGAN] = time.monotonic()
    parent = config.getoption("--parent")
    if parent is not None:
        with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            pytest.exit("nobody waits for what is measured", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By suite, and in each the GPU's cases first; other tests that were asked for come before all."""
    suites = [f"test_{name}" for name in ORDER]

    def place(item: pytest.Item) -> tuple[int, bool]:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        suite = suites.index(item.path.stem) if item.path.stem in suites else -1
        return suite, getattr(parameters.get("case"), "device", None) == "cpu"

    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - item.config.stash[BEGAN] > 60 * minutes:
        pytest.skip(f"{item.name}: --minutes {minutes:g} are over")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cases of the grid that was asked for."""
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.cases(metafunc.config.getoption("--grid"))
        metafunc.parametrize("case", [as_parameter(case) for case in cases])


def as_parameter(case: Any) -> Any:
    """The case as a parameter; one of a GPU is skipped, by name, where there is none, and one of the CPU beside a GPU,
    which is what counts there."""
    gpu = torch.cuda.is_available()
    reason = None
    if case.device == "cuda" and not gpu:
        reason = f"the Triton kernels, {case}: no CUDA GPU"
    elif case.device == "cpu" and gpu:
        reason = f"the C++ kernels, {case}: there is a GPU"
    marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
    return pytest.param(case, id=str(case), marks=marks)


@pytest.fixture
def grid(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--grid"))


@pytest.fixture
def rates(case: Any) -> dict[str, float]:
    """What the machine reaches, measured once a run."""
    return machine.rates(case.device)


@pytest.fixture(autouse=True)
def recorded(request: pytest.FixtureRequest) -> Any:
    """All that was measured so far is on the disk before the next case begins."""
    yield
    config = request.config
    if config.getoption("--record") is None:
        return
    session = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's own place for it
    if MACHINE not in config.stash:
        config.stash[MACHINE] = session.get_machine_info()  # a second
    record = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=session.benchmarks,
        include_data=False,
        machine_info=config.stash[MACHINE],
        commit_info={},
    )
    config.hook.pytest_benchmark_update_json(config=config, benchmarks=session.benchmarks, output_json=record)
    if record["benchmarks"]:
        try:
            write_atomically(config.getoption("--record"), (json.dumps(record, indent=1) + "\n").encode())
        except UserError as error:
            pytest.exit(str(error), returncode=1)


@pytest.fixture(autouse=True)
def own_memory() -> Any:
    """What a case leaves behind is not the next one's."""
    yield
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep what tells machines apart, not which machine it was, and of the cases those that came to their end."""
    found = output_json["machine_info"]
    cpu = found.get("cpu", {})
    output_json["machine_info"] = {
        "cpu": {key: cpu.get(key) for key in ("brand_raw", "arch", "count", "l2_cache_size", "l3_cache_size", "flags")},
        "system": found.get("system"),
        **machine.describe(),
    }
    output_json["grid"] = config.getoption("--grid")
    output_json["commit_info"] = machine.commit()
    output_json["benchmarks"] = [each for each in output_json["benchmarks"] if "kind" in each["extra_info"]]
