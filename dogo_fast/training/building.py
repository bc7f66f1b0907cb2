"""What a trainer is built of: its images, their views, the peers, their optimisers, and the step of them all."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dogo_fast.data import DataSet, Images, ImageSource, IterableSource, Pictures
from dogo_fast.errors import UserError
from dogo_fast.peers import Peer, build_peer
from dogo_fast.philox import derive_seed
from dogo_fast.training.config import PRECISIONS, PretrainConfig
from dogo_fast.training.objectives import Objective
from dogo_fast.training.optimisers import build_optimiser
from dogo_fast.training.step import StepSettings, TrainingStep
from dogo_fast.views import VIEW_RECIPES, Augmentation, ViewRecipe

SMALL_PHOTOGRAPH = 64
"""Pixels: larger images get SimCLR's recipe for ImageNet, with blur, the others that for CIFAR-10."""


def refuse_several_processes() -> None:
    """Raises UserError where this is one process of several, as torchrun starts them: each would train on its own part
    of a batch, by a loss of that alone."""
    started = os.environ.get("WORLD_SIZE", "1")
    count = int(started) if started.isdecimal() else 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
    if count > 1:
        raise UserError(
            f"training in several processes is not supported yet, got a world size of {count}: start one process "
            "(without torchrun, or with --nproc-per-node 1)"
        )


def as_data_set(data: Images | DataSet | ImageSource | IterableSource) -> DataSet:
    """Images without labels as a data set; a data set's own, contiguous.

    Raises:
        TypeError, ValueError: anything else, or a tensor that is not uint8 [N, 3, H, W].
    """
    if not isinstance(data, Tensor | Pictures | DataSet | ImageSource | IterableSource):
        hint = ""
        if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not hasattr(data, "shape"):
            hint = ": wrap it, dogo_fast.data.MapSource(data)"
        elif isinstance(data, Iterable):
            hint = ": wrap it, dogo_fast.data.IterableSource(data, count)" if not hasattr(data, "shape") else ""
        raise TypeError(
            f"data must be a tensor, Pictures, a DataSet or an ImageSource, got {type(data).__name__}{hint}"
        )
    if isinstance(data, Tensor) and (data.dtype != torch.uint8 or data.dim() != 4 or data.shape[1] != 3):
        raise ValueError(f"data must be images uint8 [N, 3, H, W], got {data.dtype} {tuple(data.shape)}")
    data = data if isinstance(data, DataSet) else DataSet("images", data, None, None, ())
    images = data.pretraining
    return replace(data, pretraining=images.contiguous()) if isinstance(images, Tensor) else data


def choose_recipe(recipe: str | ViewRecipe, data: DataSet) -> ViewRecipe:
    """The recipe itself, or the one of that name; ``"auto"`` is the one for the data set."""
    if isinstance(recipe, ViewRecipe):
        return recipe
    if recipe == "auto":
        recipe = "cifar" if data.view_size <= SMALL_PHOTOGRAPH else "simclr"
        recipe = data.name if data.name in VIEW_RECIPES else recipe
    return VIEW_RECIPES[recipe]


def build_step(config: PretrainConfig, data: DataSet, backbones: Sequence[str | nn.Module]) -> TrainingStep:
    """The step of a resolved configuration.

    Args:
        config: resolved.
        data: on its device.
        backbones: names, or modules, which are trained in place.

    Raises:
        ValueError: backbones that give no features, share what they learn, or are not float32.
    """
    device, dtype, size = torch.device(config.device), PRECISIONS[config.precision], data.view_size
    views = 2 if config.shared_views else 2 * len(backbones)
    augmentation = Augmentation(
        [choose_recipe(config.recipe, data)] * views,
        size,
        derive_seed(config.seed, "views"),
        mean=data.mean,
        deviation=data.deviation,
        dtype=dtype,
        device=device,
    )
    peers = [
        build_peer(backbone, size, config.seed, number, method).to(device)
        for number, (backbone, method) in enumerate(zip(backbones, config.method, strict=True), 1)
    ]
    _check_parameters(peers)
    optimisers = [
        build_optimiser(
            config.optimiser[number],
            peer.parameters(),
            learning_rate=config.learning_rate[number],
            weight_decay=config.weight_decay[number],
            momentum=config.momentum[number],
            device=device,
            decay_all=config.decay_all,
        )
        for number, peer in enumerate(peers)
    ]
    objective = Objective(
        config.method, config.kd_weight, config.temperature, config.kd_temperature, config.kl_reduction
    )
    settings = StepSettings(
        dtype, config.accumulate, config.clip_norm, config.compile, config.shared_views, config.kd_ramp_epochs > 0
    )
    return TrainingStep(peers, optimisers, objective, augmentation, config.batch_size, settings)


def _check_parameters(peers: Sequence[Peer]) -> None:
    parameters = [parameter for peer in peers for parameter in peer.parameters()]
    buffers = [buffer for peer in peers for buffer in peer.buffers()]
    if len(set(parameters)) < len(parameters):
        raise ValueError("backbones must not share parameters: each peer has an optimiser of its own")
    if len(set(buffers)) < len(buffers):
        raise ValueError("backbones must not share buffers: each peer has batch norms of its own")
    for parameter in parameters:
        if parameter.dtype != torch.float32:
            raise ValueError(f"backbones must have float32 parameters (precision is an option), got {parameter.dtype}")
