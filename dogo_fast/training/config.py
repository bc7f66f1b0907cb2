"""What a pretraining run is made of; also the options of ``dogo-fast pretrain``."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dogo_fast.data import DATA_SETS, DECODE_SIZE, check_data_name
from dogo_fast.errors import UserError
from dogo_fast.peers import BACKBONES, METHODS, check_backbone_name
from dogo_fast.training.precision import automatic_precision
from dogo_fast.views import VIEW_RECIPES, ViewRecipe

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIMISERS = ("adam", "adamw", "sgd", "lars")
FROM_PYTHON = "python"
"""What a run folder has for ``data`` where the images were given to ``Trainer`` and not loaded by name."""
FREE_ON_RESUME = frozenset(
    (
        "out",
        "resume",
        "device",
        "workers",
        "data_dir",
        "save_every",
        "save_minutes",
        "graph",
        "tensorboard",
        "wandb",
        "score_every",
        "evaluate",
        "report",
        "start_from",
    )
)
"""Options that do not change the trajectory: a resumed run may have others."""


def _split(value: Any) -> Any:
    """``"a,b"`` or one value for all peers, as a tuple."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class Metavar(str):
    """Annotates a field with how a command line's help names its value."""


class PerPeer(Metavar):
    """Annotates a field with a value for each peer, or one for all; commas separate them on a command line."""


_Rate = Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False)]
_Decay = Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_Momentum = Annotated[float, Field(ge=0, lt=1)]
Rates = Annotated[tuple[_Rate, ...], BeforeValidator(_split), PerPeer("X[,Y]")]
Decays = Annotated[tuple[_Decay, ...], BeforeValidator(_split), PerPeer("X[,Y]")]
Weights = Annotated[tuple[_Weight, ...], BeforeValidator(_split), PerPeer("X[,Y]")]
Momenta = Annotated[tuple[_Momentum, ...], BeforeValidator(_split), PerPeer("X[,Y]")]
Methods = Annotated[tuple[str, ...], BeforeValidator(_split), PerPeer("|".join(METHODS) + "[,...]")]
Optimisers = Annotated[tuple[str, ...], BeforeValidator(_split), PerPeer("|".join(OPTIMISERS) + "[,...]")]
Peers = Annotated[tuple[str, ...], BeforeValidator(_split), PerPeer("A[,B...]")]


def _check_recipe(recipe: str | ViewRecipe) -> str | ViewRecipe:
    if isinstance(recipe, str) and recipe not in ("auto", *VIEW_RECIPES):
        raise ValueError(f"must be one of auto, {', '.join(VIEW_RECIPES)}")
    return recipe


CheckedRecipe = Annotated[str | ViewRecipe, AfterValidator(_check_recipe), Metavar("auto|" + "|".join(VIEW_RECIPES))]


class PretrainConfig(BaseModel):
    """How peers are trained together. "Per peer": one value for all, or one for each, separated by commas."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    data: Annotated[str, Metavar("NAME")] = Field(
        "digits",
        description=f"One of {', '.join(DATA_SETS)}, torchvision:NAME, hf:PATH, list:NAME; all but digits from "
        "`data_dir`.",
    )
    data_dir: Annotated[Path | None, Metavar("DIR")] = None
    """Folder that holds the data set's files; nothing is ever downloaded."""
    view_size: Annotated[int | None, Metavar("PIXELS")] = Field(None, ge=4, le=4096)
    """Side of the views (default: the data set's own where its images are squares of one size, 224 for photographs)."""
    decode_size: Annotated[int, Metavar("PIXELS")] = Field(DECODE_SIZE, ge=4, le=16384)
    """Pictures whose shorter side is longer are shrunk to it when they are read; views are drawn from the whole."""
    imbalance: Annotated[float | None, Metavar("EXPONENT")] = Field(None, gt=0, le=100)
    """Train on an unbalanced part: all images of the first class, 5 % of the last, a power law between them."""
    hold_out: Annotated[float | None, Metavar("SHARE")] = Field(None, gt=0, lt=1)
    """Keep this share of each class's training images out, and score on them instead of the test images: to choose
    settings by."""
    residence: Literal["auto", "device", "stream"] = "auto"
    """Hold all images on the device, or decode them as they are needed; auto holds up to 4 GiB."""
    workers: int = Field(min(8, max(1, (os.cpu_count() or 2) - 1)), ge=0, le=256)
    """Processes that decode images."""
    recipe: CheckedRecipe = "auto"
    """How views are made; auto is the data set's own recipe."""
    shared_views: bool = False
    """Show the same two views of an image to all peers; each draws its own otherwise, as in the authors' code."""

    peers: Peers = Field(
        ("small", "small"),
        description=f"Two backbones or more, one name for two alike: {', '.join(BACKBONES)} or timm:NAME.",
    )
    method: Methods = ("simclr",)
    """Per peer, its own objective."""
    temperature: float = Field(0.2, ge=0.01, le=10, allow_inf_nan=False)
    """Temperature of NT-Xent; 0.2, like the other two defaults here, is what images held out of CIFAR-10 chose."""
    kd_temperature: float = Field(0.1, ge=0.01, le=10, allow_inf_nan=False)
    """Temperature of the similarity distributions that the peers align."""
    kd_weight: Weights = (1.0,)
    """Per peer, weight of the distillation from the others; 0 trains the peers apart, as each would train alone."""
    kd_ramp_epochs: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Epochs in which the weight of the distillation rises linearly from 0 at first."""
    kl_reduction: Literal["batchmean", "mean", "sum"] = "batchmean"
    """Of the distillation term; mean is the authors' code's, which divides by N² instead of N."""

    epochs: int = Field(40, ge=1, le=1_000_000)
    """Passes over the training images."""
    batch_size: int = Field(128, ge=2)
    """Images a step; the last incomplete batch of an epoch is dropped."""
    accumulate: int = Field(1, ge=1)
    """Parts into which a batch is cut, one after the other, to save memory; each contrasts with its own images only."""
    optimiser: Optimisers = ("adam",)
    """Per peer."""
    learning_rate: Rates = (1e-3,)
    """Per peer, after the warm-up."""
    weight_decay: Decays = (1e-6,)
    """Per peer; biases and norms do not decay."""
    decay_all: bool = False
    """Let biases and norms decay too, as the authors' code does; LARS never does."""
    momentum: Momenta = (0.9,)
    """Per peer, of SGD and LARS."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: the learning rate falls to 0 over the run as a half cosine."""
    warmup_epochs: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Epochs in which the learning rate rises linearly at first."""
    clip_norm: Annotated[float | None, Metavar("X")] = Field(None, gt=0)
    """Clip each peer's gradient to this norm."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order and the views."""
    device: Annotated[str, Metavar("auto|cpu|cuda|cuda:N")] = "auto"
    """Where to train; auto is the GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the networks; auto is bfloat16 on a GPU and float32 on a CPU. Weights and losses stay float32."""
    graph: bool = True
    """On a GPU, capture the step as a CUDA graph."""
    compile: bool = False
    """Run the networks through torch.compile."""

    out: Annotated[Path | None, Metavar("DIR")] = None
    """Folder for the results, new or empty unless the run in it is resumed (default: runs/DATA-PEERS-TIME)."""
    resume: Annotated[str | None, Metavar("auto|PATH")] = None
    """auto: continue the run in `out` if there is one, else start it; PATH: continue from this checkpoint."""
    start_from: Annotated[Path | None, Metavar("RUN")] = None
    """Begin with both peers' weights, heads included, of another run (its folder, or a checkpoint); all else is new."""
    save_every: int = Field(0, ge=0)
    """Keep a checkpoint every so many epochs (0: only the last two steps saved, which are there in any case)."""
    save_minutes: float = Field(10.0, gt=0)
    """Save in the middle of an epoch, too, after so many minutes without a checkpoint."""
    score_every: int = Field(0, ge=0)
    """Every so many epochs, measure each peer's k-NN accuracy; the best state of them all is kept (0: never)."""
    evaluate: bool = True
    """Compare the features before and after by k-NN and a linear probe, where the data set has labels."""
    report: bool = True
    """Leave a report with pictures in the run folder."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard as well."""
    wandb: bool = False
    """Send the metrics to Weights & Biases as well."""

    @field_validator("data")
    @classmethod
    def _check_data(cls, data: str) -> str:
        if data == FROM_PYTHON:
            raise ValueError("must not be images that were given in Python: build the same Trainer again, with resume")
        check_data_name(data)
        return data

    @field_validator("peers", "method", "optimiser")
    @classmethod
    def _check_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in names:
            if info.field_name == "peers":
                check_backbone_name(name)
                continue
            allowed = METHODS if info.field_name == "method" else OPTIMISERS
            if name not in allowed:
                raise ValueError(f"must be of {', '.join(allowed)}, one for all peers or one for each")
        return names * 2 if info.field_name == "peers" and len(names) == 1 else names

    @model_validator(mode="after")
    def _one_for_each_peer(self) -> "PretrainConfig":
        for name, field in type(self).model_fields.items():
            values = getattr(self, name)
            if name == "peers" or not any(isinstance(each, PerPeer) for each in field.metadata):
                continue
            if len(values) == 1:
                object.__setattr__(self, name, values * len(self.peers))
            elif len(values) != len(self.peers):
                shown = ",".join(map(str, values))
                raise ValueError(f"`{name}` must be one value, or one for each of {len(self.peers)} peers, got {shown}")
        return self

    @model_validator(mode="after")
    def _check_together(self) -> "PretrainConfig":
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            raise ValueError(
                f"`accumulate` must divide `batch_size` into parts of 2 images or more, got {self.accumulate} "
                f"and {self.batch_size}"
            )
        for name in ("warmup_epochs", "kd_ramp_epochs"):
            if getattr(self, name) > self.epochs:
                raise ValueError(f"`{name}` must be at most `epochs`, got {getattr(self, name):g} and {self.epochs}")
        return self

    def resolve(self, **known: Any) -> "PretrainConfig":
        """The same with the device, the precision and the whole path of ``data_dir`` that are meant.

        Args:
            known: fields that are known by now and take the place of those here, unchecked.

        Raises:
            UserError: a device that this machine does not have.
        """
        device = resolve_device(self.device)
        precision = known.get("precision", self.precision)
        if precision == "auto":
            precision, _ = automatic_precision(device)
        directory = None if self.data_dir is None else self.data_dir.absolute()
        found = {"device": str(device), "precision": precision, "data_dir": directory}
        return self.model_copy(update={**found, **known})


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises:
        UserError: another name, or a GPU that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (name != "cuda" and not number.isdecimal()):
        raise UserError(f"`device` must be auto, cpu, cuda or cuda:N, got {name!r}")
    if not gpus:
        raise UserError(f"`device` must be auto or cpu, because PyTorch sees no CUDA GPU here, got {name!r}")
    if number and int(number) >= gpus:
        raise UserError(f"`device` must be auto, cpu, cuda or cuda:0 to cuda:{gpus - 1}, got {name!r}")
    return torch.device(name)
