"""Features of a backbone, and fair batch-norm statistics for one that was never trained."""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dogo_fast.data import DataSet, ImageSource, IterableSource, Pictures, Split, batches_in_order
from dogo_fast.data.pixels import scored_views
from dogo_fast.errors import UserError

BATCH = 512
CALIBRATION_IMAGES = 4096


def _device_of(backbone: nn.Module) -> torch.device:
    return next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))


def prepare(pictures: Pictures, data: DataSet, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Pictures as evaluation sees them, float32 [N, 3, S, S], normalised, channels-last: whole where the data set's
    images are squares of one size, else the middle of each (``scored_views``); ``change`` is done to uint8 of them."""
    stack = pictures.stack()
    groups = [each[None] for each in pictures.each()] if stack is None else [stack]
    images = torch.cat([scored_views(group, data.view_size, bool(data.photographs)) for group in groups])
    if change is not None:
        images = change(images.round().to(torch.uint8)).to(torch.float32)
    mean, deviation = (torch.tensor(x, device=images.device)[:, None, None] for x in (data.mean, data.deviation))
    return images.div_(255).sub_(mean).div_(deviation).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    part: Split | ImageSource,
    data: DataSet,
    workers: int = 0,
    change: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of all labelled images of a part of a data set, in evaluation mode, which is put back afterwards.

    Args:
        backbone: maps images [B, 3, H, W] to features [B, F].
        part: images and their labels, of which those below 0 are none; of a source, damaged ones are left out.
        data: the data set, whose mean and deviation normalise them.
        workers: processes that decode a source.
        change: what is done to the images uint8 [B, 3, S, S] before they are normalised, a batch after the other.

    Returns:
        features float32 [N, F] and labels int64 [N], on the backbone's device.

    Raises:
        UserError: more than 1 % of the images are damaged, or a worker died.
    """
    training = backbone.training
    backbone.eval()
    images = part.images if isinstance(part, Split) else part
    batches = batches_in_order(images, BATCH, _device_of(backbone), workers)
    features, numbers = zip(
        *((backbone(prepare(batch, data, change)), numbers) for batch, numbers in batches), strict=True
    )
    backbone.train(training)
    assert part.labels is not None
    rows = torch.cat(features)
    labels = part.labels[torch.cat(numbers).to(part.labels.device)].to(rows.device)
    labelled = labels >= 0
    return rows[labelled], labels[labelled]


@contextlib.contextmanager
def scorable(data: DataSet) -> Iterator[None]:
    """What scores refuse in features, no labelled rows or NaN, as a UserError that names the data set."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the features of {data.name} cannot be scored: {error}") from None


@torch.no_grad()
def calibrate_batch_norm(backbone: nn.Module, data: DataSet, workers: int = 0) -> None:
    """Set the running statistics of every batch norm to those of the first 4096 images; no weight changes.

    A new network's statistics are 0 and 1, whatever its activations are: in evaluation mode that would make untrained
    features look worse than the weights deserve.

    Args:
        backbone: changed in place.
        data: its pretraining images are used.
        workers: processes that decode a source.

    Raises:
        UserError: as ``extract_features``.
    """
    norms = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = backbone.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
    backbone.train()
    count = min(data.image_count, CALIBRATION_IMAGES)
    parts = -(-count // BATCH)
    images = data.pretraining
    if isinstance(images, IterableSource):  # which would begin an epoch
        assert data.train is not None
        images = data.train.images if isinstance(data.train, Split) else data.train
        count = min(len(images), CALIBRATION_IMAGES)
        parts = -(-count // BATCH)
    batches = batches_in_order(images, -(-count // parts), _device_of(backbone), workers)
    for batch, _ in itertools.islice(batches, parts):
        if len(batch) > 1:
            backbone(prepare(batch, data))
    backbone.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
