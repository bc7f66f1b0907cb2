"""What the tables, the plots and the page read of each benchmark in a record, and what it must be."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FromZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
"""The work of so many images is still a number that a float holds."""
Quartiles = Annotated[list[AboveZero], Field(min_length=3, max_length=3)]
Shares = Annotated[list[FromZero], Field(min_length=3, max_length=3)]
Errors = Annotated[list[float], Field(min_length=2, max_length=2)]
"""Of the value and the gradients; what overflows is not finite."""
Device = Literal["cpu", "cuda"]


class Wrong(Exception):
    """A field that is not what it must be."""


class Part(BaseModel):
    """Fields of their exact types; others are not looked at."""

    model_config = ConfigDict(strict=True)


def with_ours(by_name: dict[str, Any]) -> dict[str, Any]:
    if "ours" not in by_name:
        raise ValueError("must have 'ours'")
    return by_name


class Phases(Part):
    forward: Quartiles
    backward: Quartiles
    both: Quartiles


class Rates(Part):
    gemm: AboveZero
    exp2: AboveZero
    copy_: AboveZero = Field(alias="copy")


class Roofline(Part):
    percent: AboveZero
    rates: Rates


class Work(Part):
    flop: FromZero
    exponentials: FromZero
    bytes: FromZero


class Kernel(Part):
    kernel: str
    tile: str
    warps: Count
    programs: Count
    seconds: Quartiles
    run: Work
    needed: Work
    bound_seconds: FromZero
    limiter: str
    percent: FromZero


class Case(Part):
    """As dogo_fast.ops.compiling.Case has them, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")
    loss: str
    dtype: str
    D: Count
    N: Count
    variant: str


class Kernels(Part):
    case: Case
    rates: Rates
    multiprocessors: Count
    kernels: list[Kernel]


class NoKernels(Part):
    case: Case
    unavailable: str


class Loss(Part):
    loss: Literal["dogo_loss", "nt_xent", "similarity_kl"]
    device: Device
    N: Count
    D: Count
    dtype: Literal["float32", "bfloat16", "float16"]
    seconds: Annotated[dict[str, Phases], AfterValidator(with_ours)]
    faster_than: dict[str, Phases]
    missing: dict[str, str]
    memory_bytes: Annotated[dict[str, FromZero], AfterValidator(with_ours)]
    relative_error: dict[str, Errors]
    roofline: Roofline
    captured: dict[str, bool]

    @model_validator(mode="after")
    def say_of_each_whether_it_was_captured(self) -> "Loss":
        if unsaid := {*self.seconds, *self.faster_than} - set(self.captured):
            raise ValueError(f"captured must have {min(unsaid)!r}")
        return self


class Rated(Part):
    device: Device
    N: Count
    per_second: Annotated[dict[str, Quartiles], AfterValidator(with_ours)]
    faster_than: dict[str, Quartiles]


class Views(Rated):
    size: Count
    recipe: str


class PhaseShares(Part):
    augmentation: Shares
    forward: Shares
    loss: Shares
    backward: Shares
    optimisers: Shares


class Step(Rated):
    backbone: str
    phase_shares: PhaseShares
    gpu_idle_share: Annotated[float, Field(allow_inf_nan=False)] | None = None


class Pretraining(Rated):
    backbone: str
    images: Count


class GPU(Part):
    architecture: Annotated[str, Field(pattern=r"^(sm_\d{1,4}|gfx\w{1,8})$")]
    """A part of a file's name."""


KINDS: dict[str, type[Part]] = {"loss": Loss, "views": Views, "step": Step, "pretraining": Pretraining}
"""Nobody reads other kinds."""


def check(infos: Iterable[dict[str, Any]], gpu: dict[str, Any] | None) -> None:
    """Of the ``extra_info`` of a record's benchmarks; ``gpu``: of its machine.

    Raises:
        Wrong: a field that is missing or not what it must be.
    """
    for number, info in enumerate(infos):
        field = f"benchmarks[{number}].extra_info"
        if info["kind"] in KINDS:
            _validate(KINDS[info["kind"]], info, field)
        if "kernels" in info:
            _validate(GPU, gpu or {}, "machine_info.gpu")
            found = info["kernels"]
            absent = isinstance(found, dict) and "unavailable" in found
            _validate(NoKernels if absent else Kernels, found, f"{field}.kernels")


def _validate(part: type[Part], value: Any, field: str) -> None:
    try:
        part.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in first["loc"])
        got = repr(first["input"])
        got = got if len(got) <= 60 else f"{got[:60]} …"
        raise Wrong(f"{field}{where}: {first['msg']}, got {got}") from None
