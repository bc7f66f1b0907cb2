"""Where the kernels run: on a GPU if there is one, else in Triton's interpreter on the CPU (chosen before Triton is
imported)."""

import os
from importlib.metadata import version

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 7) and int(version("numpy").split(".")[1]) >= 4:
        pytest.exit("the interpreter of Triton 3.6 fails on NumPy 2.4 and newer: pip install 'numpy<2.4'", returncode=4)

NO_GPU = "needs a CUDA GPU, torch.cuda.is_available() is False here"
NO_INTERPRETER = "the kernels are compiled for the GPU here; its own variant of this test runs them"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none, with the reason printed by -ra."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of tensors given to the Triton kernels: a CPU means the interpreter."""
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip(NO_INTERPRETER)
    return torch.device(request.param)
