"""Recorded runs, as the tables, the page and the check read them: what pytest-benchmark wrote, validated.

Fields that nobody reads are not looked at.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, AliasPath, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic import model_validator as check

from dogo_fast.ops.compiling import KernelCase

RESULTS = Path(__file__).resolve().parent / "results"
INCOMPLETE = "-incomplete"
"""At the end of a record's name, while not all is measured."""
PLACES = {"cpu": "CPU", "cuda": "GPU"}

AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FromZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
"""The work of so many images is still a number that a float holds."""
Device = Literal["cpu", "cuda"]


class NotARecord(Exception):
    """A file that is none of those that are recorded here."""


class Quartiles(NamedTuple):
    """Of times, rates or ratios."""

    low: AboveZero
    median: AboveZero
    high: AboveZero


class Part(BaseModel):
    """Fields of their exact types."""

    model_config = ConfigDict(strict=True)


class Phases(Part):
    forward: Quartiles
    backward: Quartiles
    both: Quartiles


class Rates(Part):
    gemm: AboveZero
    exp2: AboveZero
    copy_: AboveZero = Field(alias="copy")


def with_ours(by_name: dict[str, Any]) -> dict[str, Any]:
    if "ours" not in by_name:
        raise ValueError("must have 'ours'")
    return by_name


class KernelInfo(Part):
    """A kernel's time in a pass on a GPU, and the least time of the work that is needed, by what may limit it."""

    kernel: str
    tile: str
    warps: Count
    programs: Count
    seconds: Quartiles
    bound: Annotated[dict[str, AboveZero], Field(min_length=1)]


class KernelsInfo(Part):
    """All kernels of a pass, or why they are ``unavailable``."""

    case: KernelCase
    unavailable: str | None = None
    rates: Rates | None = None
    multiprocessors: Count = 1
    kernels: list[KernelInfo] = []


class Info(Part):
    """What every benchmark has."""

    kind: str
    device: Device
    N: Count
    kernels: KernelsInfo | None = None


class LossInfo(Info):
    loss: Literal["dogo_loss", "nt_xent", "similarity_kl"]
    D: Count
    dtype: Literal["float32", "bfloat16", "float16"]
    seconds: Annotated[dict[str, Phases], AfterValidator(with_ours)]
    faster_than: dict[str, Phases]
    missing: dict[str, str]
    memory_bytes: Annotated[dict[str, FromZero], AfterValidator(with_ours)]
    relative_error: dict[str, tuple[float, float]]
    """Of the value and the gradients; what overflows is not finite."""
    rates: Rates = Field(validation_alias=AliasPath("roofline", "rates"))
    captured: dict[str, bool]

    def __str__(self) -> str:
        return f"N = {self.N}, D = {self.D}, {self.dtype}"


class RatedInfo(Info):
    """A rate, and how much longer others take."""

    per_second: Annotated[dict[str, Quartiles], AfterValidator(with_ours)]
    faster_than: dict[str, Quartiles]

    @property
    def unit(self) -> str:
        return "views/s" if self.kind == "views" else "images/s"


class ViewsInfo(RatedInfo):
    size: Count
    recipe: str

    def __str__(self) -> str:
        return f"{PLACES[self.device]}, {self.size} px, {self.recipe}, {self.N} images"


class StepInfo(RatedInfo):
    backbone: str
    phase_shares: Annotated[dict[str, Quartiles], Field(min_length=1)]
    gpu_idle_share: Annotated[float, Field(allow_inf_nan=False)] | None = None

    def __str__(self) -> str:
        return f"{PLACES[self.device]}, two {self.backbone}, batch {self.N}"


class PretrainingInfo(RatedInfo):
    backbone: str
    images: Count

    def __str__(self) -> str:
        return f"{PLACES[self.device]}, two {self.backbone}, {self.images} images, batch {self.N}"


class StreamingInfo(RatedInfo):
    size: Count
    images: Count

    def __str__(self) -> str:
        return f"{PLACES[self.device]}, {self.size} px, {self.images} photographs, batch {self.N}"


def _kind(info: Any) -> str:
    return f"<{info.get('kind') if isinstance(info, dict) else info.kind}>"


class Benchmark(Part):
    extra_info: Annotated[
        Annotated[LossInfo, Tag("<loss>")]
        | Annotated[ViewsInfo, Tag("<views>")]
        | Annotated[StepInfo, Tag("<step>")]
        | Annotated[PretrainingInfo, Tag("<pretraining>")]
        | Annotated[StreamingInfo, Tag("<streaming>")],
        Discriminator(_kind),
    ]


class CPU(Part):
    brand_raw: str | None = None
    count: Count
    flags: list[str] | None = None


class GPU(Part):
    name: str
    driver: str | None = None
    cuda: str | None = None


class Machine(Part):
    cpu: CPU
    gpu: GPU | None = None
    python: str
    threads: Count
    memory: Count | None = None
    versions: dict[str, str]


class Commit(Part):
    id: str
    time: str
    dirty: bool


Wanted = TypeVar("Wanted", bound=Info)
Model = TypeVar("Model", bound=BaseModel)


class Record(Part):
    """One run of the suite on one machine."""

    path: Path = Path()
    grid: str
    machine: Machine = Field(alias="machine_info")
    commit: Commit = Field(alias="commit_info")
    remark: str | None = None
    """What else a reader must know, put in by hand."""
    benchmarks: list[Benchmark]

    @check(mode="after")
    def say_which_gpu(self) -> "Record":
        if self.device == "cuda" and self.machine.gpu is None:
            raise ValueError("machine_info must have 'gpu' where something ran on one")
        return self

    def of(self, kind: type[Wanted], **wanted: Any) -> list[Wanted]:
        """What was measured of a kind, with these fields."""
        infos = [each.extra_info for each in self.benchmarks if isinstance(each.extra_info, kind)]
        return [info for info in infos if all(getattr(info, name) == value for name, value in wanted.items())]

    @property
    def device(self) -> Device:
        """What the record is about: its GPU, where that was measured."""
        return "cuda" if self.of(Info, device="cuda") else "cpu"

    @property
    def name(self) -> str:
        """Of what was measured: the GPU, or the processor."""
        gpu = self.machine.gpu if self.device == "cuda" else None
        return gpu.name if gpu else str(self.machine.cpu.brand_raw)

    def head(self) -> list[str]:
        """Where, with what and at which commit the run was made."""
        machine, cpu, gpu = self.machine, self.machine.cpu, self.machine.gpu
        flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in (cpu.flags or ())]
        memory = f", {machine.memory / 2**30:.0f} GiB" if machine.memory else ""
        changed = " with uncommitted changes" if self.commit.dirty else ""
        name, time = self.commit.id, self.commit.time[:10]
        name = f"commit {name[:12]}{changed}, {time}" if time else name  # an installed package has a version only
        return [
            *([f"{gpu.name}, driver {gpu.driver}, CUDA {gpu.cuda}"] if gpu else []),
            f"{cpu.brand_raw}, {cpu.count} cores ({', '.join(flags)}), {machine.threads} threads{memory}",
            ", ".join([f"Python {machine.python}", *map(" ".join, machine.versions.items())]),
            f"{name}, grid {self.grid}{(self.remark and f'; {self.remark}') or ''}",
        ]


def read(path: Path, model: type[Model], what: str) -> Model:
    """A file as a model of what it should be.

    Raises:
        NotARecord: it is missing, none of those, or damaged, with the field that is.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NotARecord(f"{path} is not {what}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        steps = [each for each in first["loc"] if not str(each).startswith("<")]  # tags of a union
        where = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in steps)[1:]
        if len(steps) < 2 and first["type"] != "value_error":
            raise NotARecord(f"{path} is not {what}: {where} {first['msg'][:200]}") from None
        got = repr(first["input"])
        got = got if len(got) <= 60 else f"{got[:60]} …"
        raise NotARecord(f"{path} is damaged{where and f', {where}'}: {first['msg']}, got {got}") from None


def load(path: Path) -> Record:
    """Read a run of the suite; raises NotARecord, see ``read``."""
    return read(path, Record, "a record of the benchmarks").model_copy(update={"path": path})


def recorded() -> list[Record]:
    """All records of finished runs that the repository has, those with times of a GPU first."""
    paths = [path for path in sorted(RESULTS.glob("benchmark-*.json")) if not path.stem.endswith(INCOMPLETE)]
    return sorted(map(load, paths), key=lambda record: record.device == "cpu")
