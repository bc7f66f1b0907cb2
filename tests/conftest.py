"""Which backend computes, and where: Triton's kernels run on a GPU if there is one, else in Triton's interpreter on the
CPU (chosen before Triton is imported). And how much of the tests runs: ``make test`` is their quick form, ``make
test-all`` their whole one, ``pytest --whole``."""

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 7) and int(version("numpy").split(".")[1]) >= 4:
        pytest.exit("the interpreter of Triton 3.6 fails on NumPy 2.4 and newer: pip install 'numpy<2.4'", returncode=4)

NO_GPU = "needs a CUDA GPU, torch.cuda.is_available() is False here"
NO_INTERPRETER = "the kernels are compiled for the GPU here; its own variant of this test runs them"
ONLY_WHOLE = "not in the quick form: make test-all runs it (pytest --whole)"
settings.register_profile("whole", max_examples=100)
settings.register_profile("quick", max_examples=30)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run every test whole, as make test-all does")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("whole" if config.getoption("whole") else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none, and in the quick form what is marked whole; -ra prints why."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))
        elif item.get_closest_marker("whole") and not config.getoption("whole"):
            item.add_marker(pytest.mark.skip(reason=ONLY_WHOLE))


@pytest.fixture(autouse=True)
def float32_where_precision_is_auto() -> Iterator[None]:
    """On every processor: which of the two is faster is measured, and values are not to depend on it."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patched
        patch.setattr("dogo_fast.training.precision.pace_of_bfloat16", lambda: 0.5)
        yield


TRITON = ["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)]
CPP_THREADS = 2  # so that tasks run at once even where each test process is given one thread


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], torch.device]]:
    """Makes backend="auto" mean a fused backend while the test runs, and says where its tensors are to be."""
    threads = torch.get_num_threads()

    def chosen(kind: str) -> torch.device:
        if kind == "interpreter" and torch.cuda.is_available():
            pytest.skip(NO_INTERPRETER)
        if kind == "cpp":
            torch.set_num_threads(CPP_THREADS)
        monkeypatch.setenv("DOGO_FAST_BACKEND", "cpp" if kind == "cpp" else "triton")
        return torch.device("cuda" if kind == "gpu" else "cpu")

    yield chosen
    torch.set_num_threads(threads)


@pytest.fixture(params=[*TRITON, "cpp"])
def device(request: pytest.FixtureRequest, choose: Callable[[str], torch.device]) -> torch.device:
    """For tests of every fused backend."""
    return choose(request.param)


@pytest.fixture(params=TRITON)
def triton_device(request: pytest.FixtureRequest, choose: Callable[[str], torch.device]) -> torch.device:
    """For tests of the Triton kernels; a CPU means the interpreter."""
    return choose(request.param)


@pytest.fixture
def cpp_device(choose: Callable[[str], torch.device]) -> torch.device:
    """For tests of the C++ kernels."""
    return choose("cpp")


@pytest.fixture
def no_user_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No tiles but the shipped ones, though whoever runs the tests may have tuned."""
    from dogo_fast.ops import tile_tables

    monkeypatch.setenv("DOGO_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DOGO_FAST_TILES", raising=False)
    tile_tables.table.cache_clear()
    yield
    tile_tables.table.cache_clear()
