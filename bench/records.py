"""Recorded runs: what pytest-benchmark wrote, as the tables, the plots and the check read it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import fields

RESULTS = Path(__file__).resolve().parent / "results"
INCOMPLETE = "-incomplete"
"""At the end of a record's name, while not all is measured."""


class NotARecord(Exception):
    """A file that is no record of this suite."""


@dataclass(frozen=True)
class Record:
    """One run of the suite on one machine."""

    path: Path
    machine: dict[str, Any]
    grid: str
    commit: dict[str, Any]
    infos: tuple[dict[str, Any], ...]
    """The ``extra_info`` of each benchmark."""

    def of(self, kind: str, loss: str | None = None, device: str | None = None) -> Iterator[dict[str, Any]]:
        return (
            info
            for info in self.infos
            if info["kind"] == kind and loss in (None, info.get("loss")) and device in (None, info["device"])
        )

    @property
    def name(self) -> str:
        """Of what was measured: the GPU, or the processor."""
        return str(self.machine["gpu"]["name"] if self.has_gpu_times else self.machine["cpu"]["brand_raw"])

    @property
    def has_gpu_times(self) -> bool:
        return any(info.get("device") == "cuda" for info in self.infos)

    @property
    def device(self) -> str:
        """What the record is about: its GPU, where that was measured."""
        return "cuda" if self.has_gpu_times else "cpu"

    def head(self) -> list[str]:
        """Where, with what and at which commit the run was made."""
        cpu, gpu, versions = self.machine["cpu"], self.machine.get("gpu"), self.machine["versions"]
        flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in (cpu["flags"] or ())]
        lines = []
        if gpu:
            lines.append(f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}")
        threads = self.machine["threads"]
        memory = f", {self.machine['memory'] / 2**30:.0f} GiB" if "memory" in self.machine else ""
        lines.append(f"{cpu['brand_raw']}, {cpu['count']} cores ({', '.join(flags)}), {threads} threads{memory}")
        lines.append(
            ", ".join([f"Python {self.machine['python']}", *(f"{name} {versions[name]}" for name in versions)])
        )
        changed = " with uncommitted changes" if self.commit["dirty"] else ""
        name, time = self.commit["id"], self.commit["time"][:10]
        name = f"commit {name[:12]}{changed}, {time}" if time else name  # an installed package has a version only
        lines.append(f"{name}, grid {self.grid}")
        return lines


def load(path: Path) -> Record:
    """Read a record.

    Raises:
        NotARecord: a file that is missing, that this suite did not write or that is damaged, with the field that is.
    """
    try:
        run = json.loads(path.read_text())
        infos = tuple(benchmark["extra_info"] for benchmark in run["benchmarks"])
        record = Record(path, run["machine_info"], run["grid"], run["commit_info"], infos)
        fields.check(infos, record.machine.get("gpu") or None)
        _ = record.name, record.head()
    except fields.Wrong as error:
        raise NotARecord(f"{path} is damaged, {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise NotARecord(f"{path} is not a record of the benchmarks: {type(error).__name__}: {error}") from None
    return record


def recorded() -> list[Record]:
    """All records of finished runs that the repository has, those with times of a GPU first."""
    paths = [path for path in sorted(RESULTS.glob("benchmark-*.json")) if not path.stem.endswith(INCOMPLETE)]
    return sorted(map(load, paths), key=lambda record: not record.has_gpu_times)
