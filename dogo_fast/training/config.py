"""What a pretraining run is made of; also the options of ``dogo-fast pretrain``."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import tyro
from pydantic import BaseModel, ConfigDict, Field, field_validator

from dogo_fast.data import DATA_SETS
from dogo_fast.errors import UserError
from dogo_fast.peers import BACKBONES
from dogo_fast.philox import derive_seed

DEFAULT_OUT = "runs/DATA-PEERS-TIME"


class PretrainConfig(BaseModel):
    """Train two peers together and compare their features with those of the same networks untrained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Annotated[str, tyro.conf.arg(metavar="|".join(DATA_SETS))] = "digits"
    """Data set; digits is embedded, cifar10 is read from --data-dir."""

    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder that holds cifar-10-batches-bin (CIFAR-10, binary version)."""

    peers: Annotated[str, tyro.conf.arg(metavar="A,B")] = Field(
        "small,small", description=f"Two backbones, the same or different, of {', '.join(BACKBONES)}."
    )

    epochs: int = Field(40, ge=1, le=1_000_000)
    """Passes over the training images."""

    batch_size: int = Field(128, ge=2)
    """Images a step; the last incomplete batch of an epoch is dropped."""

    kd_weight: float = Field(1.0, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of the distillation term of both peers; 0 trains them apart."""

    temperature: float = Field(0.5, ge=0.01, le=10, allow_inf_nan=False)
    """Temperature of NT-Xent."""

    kd_temperature: float = Field(0.1, ge=0.01, le=10, allow_inf_nan=False)
    """Temperature of the similarity distributions that the peers align."""

    learning_rate: float = Field(1e-3, gt=0, le=1e3, allow_inf_nan=False)
    """Adam's, at the first step; it falls to 0 over the run as a half cosine."""

    weight_decay: float = Field(1e-6, ge=0, le=1e3, allow_inf_nan=False)
    """Adam's."""

    seed: int = Field(0, ge=0)
    """Seed of the initial weights, the order and the views."""

    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|cuda:N")] = "auto"
    """Where to train; auto is the GPU if there is one."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint=f"(default: {DEFAULT_OUT})")] = None
    """Folder for the results, new or empty."""

    @field_validator("data")
    @classmethod
    def _check_data(cls, data: str) -> str:
        if data not in DATA_SETS:
            raise ValueError(f"must be one of {', '.join(DATA_SETS)}")
        return data

    @field_validator("peers")
    @classmethod
    def _check_peers(cls, peers: str) -> str:
        names = [name.strip() for name in peers.split(",")]
        if len(names) != 2 or not set(names) <= set(BACKBONES):
            raise ValueError(f"must be two of {', '.join(BACKBONES)}, separated by a comma")
        return ",".join(names)

    @property
    def peer_names(self) -> tuple[str, str]:
        """The two backbones."""
        first, second = self.peers.split(",")
        return first, second

    def resolve(self) -> "PretrainConfig":
        """The same with the device and the output folder that ``auto`` and None stand for.

        Raises:
            UserError: a device that this machine does not have.
        """
        time = datetime.now().strftime("%Y%m%d-%H%M%S")
        out = self.out or Path("runs") / f"{self.data}-{'-'.join(self.peer_names)}-{time}"
        return self.model_copy(update={"device": str(resolve_device(self.device)), "out": out})


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
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if not gpus:
        raise UserError(f"--device must be auto or cpu, because PyTorch sees no CUDA GPU here, got {name!r}")
    if number and int(number) >= gpus:
        raise UserError(f"--device must be auto, cpu, cuda or cuda:0 to cuda:{gpus - 1}, got {name!r}")
    return torch.device(name)


def make_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator on the CPU for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose))
