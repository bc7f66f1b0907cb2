"""Features of a backbone, and fair batch-norm statistics for one that was never trained."""

import torch
from torch import Tensor, nn

from dogo_fast.data.data_set import to_unit_range

BATCH = 512
CALIBRATION_IMAGES = 4096


@torch.no_grad()
def extract_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features float32 [N, F] of uint8 images [N, 3, H, W], in evaluation mode; the mode is put back afterwards."""
    training = backbone.training
    backbone.eval()
    features = torch.cat([backbone(to_unit_range(batch)) for batch in images.split(BATCH)])
    backbone.train(training)
    return features


@torch.no_grad()
def calibrate_batch_norm(backbone: nn.Module, images: Tensor) -> None:
    """Set the running statistics of every batch norm to those of the first 4096 images; no weight changes.

    A new network's statistics are 0 and 1, whatever its activations are: in evaluation mode that would make untrained
    features look worse than the weights deserve.
    """
    norms = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = backbone.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
    backbone.train()
    for batch in images[:CALIBRATION_IMAGES].tensor_split(-(-min(len(images), CALIBRATION_IMAGES) // BATCH)):
        backbone(to_unit_range(batch))
    backbone.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
