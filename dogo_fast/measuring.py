"""What tuning and the benchmarks share: times on a GPU, and what a record says of the machine and the code."""

import contextlib
import platform
import subprocess
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

MADE_OF_RECORDS = ("README.md", "docs", "bench/results")
"""What may differ from the commit that a record names."""


def seconds_on_gpu(calls: Iterable[Callable[[], Any]]) -> float:
    """Between two events of the current CUDA stream, from before the first call to after the last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def captured(call: Callable[[], Any], pool: Any = None) -> Callable[[], None]:
    """A CUDA graph of a call, as a function that replays it. ``pool``: memory that graphs share which run one after the
    other. Whatever a graph cannot hold is raised."""
    graph = torch.cuda.CUDAGraph()
    # a capture that fails can leave its stream behind as the current one
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool):
        call()
    return graph.replay  # holds the graph


def device_name(device: torch.device) -> str:
    """Of a GPU what its driver says, of a CPU what /proc/cpuinfo does or, without that, its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The version of NVIDIA's; None where there is none."""
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0].strip() or None


def commit() -> dict[str, Any] | None:
    """Of the checkout that the package lies in: id, time, and whether sources are ``dirty``; None without one."""
    git = ("git", "-C", str(Path(__file__).resolve().parents[1]))
    if not (Path(git[2]) / ".git").exists() or not (head := _said(*git, "log", "-1", "--format=%H %cI").split()):
        return None
    changed = _said(*git, "status", "--porcelain", "--", ".", *(f":!{each}" for each in MADE_OF_RECORDS))
    return {"id": head[0], "time": head[1], "dirty": bool(changed.strip())}


def compiler_versions() -> dict[str, str | None]:
    """Of what a compiled kernel depends on; ``commit`` ends in "+" where sources were changed since."""
    found = commit()
    return {
        "torch": str(torch.__version__),
        "triton": version("triton"),
        "python": platform.python_version(),
        "commit": found["id"] + "+" * found["dirty"] if found else None,
    }


def _said(*command: str) -> str:
    """Nothing where the program is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
