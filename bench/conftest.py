"""Options and records of the suite: pytest bench --grid short --benchmark-json=FILE, or dogo-fast benchmark."""

import functools
from typing import Any

import pytest
import torch

from . import grid as grids
from . import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--grid", choices=grids.GRIDS, default="short", help="which sizes are measured")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cases of the grid that was asked for."""
    if "case" in metafunc.fixturenames:
        grid = metafunc.config.getoption("--grid")
        metafunc.parametrize("case", [as_parameter(case, grid) for case in metafunc.module.cases(grid)])


def as_parameter(case: Any, grid: str) -> Any:
    """The case as a parameter; one of a GPU is skipped, by name, where there is none, and one of the CPU beside a GPU,
    which is what counts there (grid full has both)."""
    gpu = torch.cuda.is_available()
    reason = None
    if case.device == "cuda" and not gpu:
        reason = f"the Triton kernels, {case}: no CUDA GPU"
    elif case.device == "cpu" and gpu and grid != "full":
        reason = f"the C++ kernels, {case}: there is a GPU, and the grid is not full"
    marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
    return pytest.param(case, id=str(case), marks=marks)


@pytest.fixture
def grid(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--grid"))


@functools.cache
def rates_of(device: str) -> dict[str, float]:
    return machine.rates(device)


@pytest.fixture
def rates(case: Any) -> dict[str, float]:
    """What the machine reaches, measured once a run."""
    return rates_of(case.device)


@pytest.fixture(autouse=True)
def own_memory() -> Any:
    """What a case leaves behind is not the next one's."""
    yield
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep what tells machines apart, not which machine it was."""
    found = output_json["machine_info"]
    cpu = found.get("cpu", {})
    output_json["machine_info"] = {
        "cpu": {key: cpu.get(key) for key in ("brand_raw", "arch", "count", "l2_cache_size", "l3_cache_size", "flags")},
        "system": found.get("system"),
        **machine.describe(),
    }
    output_json["grid"] = config.getoption("--grid")
    output_json["commit_info"] = machine.commit()
