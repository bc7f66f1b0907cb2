"""Networks to evaluate: those of a run folder or a checkpoint, or weights in a file under their library's own names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dogo_fast.errors import UserError
from dogo_fast.peers import build_backbone, check_backbone_name

CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.")
"""What the names of classifiers begin with in torchvision and timm; their weights are left out."""
Channels = tuple[float, float, float]
Normalisation = tuple[Channels, Channels]
"""Mean and standard deviation of the channels, in [0, 1]."""


@dataclass(frozen=True)
class Network:
    """A backbone with its weights, and how its images were prepared.

    Attributes:
        name: of the backbone.
        peer: its number in the run, from 1; 0 for a file of weights.
        backbone: in evaluation mode, on the CPU.
        image_size: side of the images, pixels; None where the file does not say.
        normalisation: None where it does not say.
        left_out: names of weights that are a classifier's.
    """

    name: str
    peer: int
    backbone: nn.Module
    image_size: int | None = None
    normalisation: Normalisation | None = None
    left_out: tuple[str, ...] = ()


def load_networks(path: Path, backbone: str | None = None, image_size: int | None = None) -> list[Network]:
    """The networks that a path means.

    Args:
        path: a run folder, whose peers are taken; one of its checkpoints; or safetensors or PyTorch weights of one
            network.
        backbone: its name, where the file does not say it (weights of torchvision or timm).
        image_size: side of its images, pixels, likewise; it decides about the small-image stem.

    Raises:
        UserError: a path that is none of these, a damaged file, or weights that do not fit the backbone.
    """
    if path.is_dir():
        files = sorted(file for file in path.glob("peer_*.safetensors") if not file.stem.endswith("_heads"))
        if not files:
            raise UserError(f"a run folder must hold peer_1.safetensors, which a run leaves at its end, got {path}")
        return [_from_file(file, int(file.stem.partition("_")[2]), None, None) for file in files]
    if not path.is_file():
        raise UserError(f"what is evaluated must be a run folder, a checkpoint or a file of weights, got {path}")
    if path.suffix == ".safetensors":
        number = path.stem.removeprefix("peer_")
        return [_from_file(path, int(number) if number.isdecimal() else 0, backbone, image_size)]
    from dogo_fast.training.checkpoint import FORMAT

    content = _unpickled(path)
    if content.get("format") == FORMAT:
        return _from_checkpoint(path)
    return [_build(path, 0, backbone, image_size, None, content.get("state_dict", content))]


def _from_checkpoint(path: Path) -> list[Network]:
    from dogo_fast.training.checkpoint import load_checkpoint

    content = load_checkpoint(path)
    normalisation: Any = tuple(map(tuple, content["normalisation"])) if "normalisation" in content else None
    names, size = content["config"]["peers"], content["view_size"]
    return [
        _build(path, number, name, size, normalisation, {
            key.removeprefix("backbone."): value for key, value in weights.items() if key.startswith("backbone.")
        })
        for number, (name, weights) in enumerate(zip(names, content["peers"], strict=True), 1)
    ]  # fmt: skip


def _from_file(path: Path, peer: int, backbone: str | None, image_size: int | None) -> Network:
    try:
        with safe_open(path, "pt") as file:
            about: Mapping[str, str] = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dictionary
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({' '.join(str(error).split())})") from None
    if "backbone" not in about:
        return _build(path, peer, backbone, image_size, None, weights)
    try:
        size = int(about["image_size"])
        normalisation = (_channels(about["mean"]), _channels(about["deviation"]))
    except (KeyError, ValueError):
        raise UserError(f"{path} is damaged: its metadata must say image_size, mean and deviation") from None
    if backbone not in (None, about["backbone"]):
        raise UserError(f"`backbone` must be that of {path}, {about['backbone']}, got {backbone}")
    return _build(path, peer, about["backbone"], size, normalisation, weights)


def _channels(text: str) -> Channels:
    red, green, blue = map(float, json.loads(text))
    return red, green, blue


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling makes of other people's files
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} is damaged, or no file of weights ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dictionary of weights, got {type(content).__name__}")
    return content


def _build(
    path: Path,
    peer: int,
    backbone: str | None,
    image_size: int | None,
    normalisation: Normalisation | None,
    weights: Mapping[str, Tensor],
) -> Network:
    if backbone is None:
        raise UserError(f"`backbone` must name the network of {path}, which does not say it, got none")
    try:
        check_backbone_name(backbone)
    except ValueError as error:
        raise UserError(f"the backbone of {path} {error}, got {backbone!r}") from None
    network = build_backbone(backbone, image_size or 224)
    own = network.state_dict()
    left_out = tuple(key for key in weights if key not in own and key.startswith(CLASSIFIERS))
    kept = {key: value for key, value in weights.items() if key not in left_out}
    missing, foreign = [key for key in own if key not in kept], [key for key in kept if key not in own]
    for what, keys in (("misses", missing), ("has, which it has not,", foreign)):
        if keys:
            raise UserError(f"{path} does not fit {backbone} at {image_size or 224} px: it {what} {_some(keys)}")
    for key, value in kept.items():
        if not isinstance(value, Tensor) or value.shape != own[key].shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"{path} does not fit {backbone} at {image_size or 224} px: {key} must be {tuple(own[key].shape)}, "
                f"got {got}"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{path} has weights that are not finite, in {key}")
    network.load_state_dict(dict(kept))
    return Network(backbone, peer, network.eval(), image_size, normalisation, left_out)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
