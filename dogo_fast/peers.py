"""The peers: an encoder without its classifier (the backbone) and SimCLR's projection head.

Backbones come from torchvision, never with downloaded weights, and keep torchvision's own parameter names; only the
stem for images under 100 px is ours. ``small`` is a compact network of ours that trains in seconds on a CPU.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torchvision
from torch import Tensor, nn

SMALL_IMAGE = 100
"""Images with fewer pixels than this a side get the small-image stem."""

PROJECTION_HIDDEN = 512
PROJECTION_WIDTH = 128


class Peer(nn.Module):
    """One of the two networks that learn together: ``head(backbone(images))``.

    Args:
        name: a key of ``BACKBONES``.
        image_size: height and width of the images, pixels; under 100 the backbone gets its small-image stem.

    Raises:
        KeyError: an unknown name.
    """

    def __init__(self, name: str, image_size: int) -> None:
        super().__init__()
        self.name = name
        self.small_stem = name != "small" and image_size < SMALL_IMAGE
        self.backbone, self.features = BACKBONES[name](self.small_stem)
        self.head = nn.Sequential(
            nn.Linear(self.features, PROJECTION_HIDDEN),
            nn.BatchNorm1d(PROJECTION_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(PROJECTION_HIDDEN, PROJECTION_WIDTH),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to projections [N, 128]; the losses normalise them."""
        return cast(Tensor, self.head(self.backbone(images)))


class SmallNetwork(nn.Sequential):
    """Four blocks of 3×3 convolution, batch norm and ReLU, halved in size between them: [N, 3, H, W] to [N, 256]."""

    def __init__(self) -> None:
        widths = (3, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            if before != 3:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _small(small_stem: bool) -> tuple[nn.Module, int]:
    return SmallNetwork(), 256


def _resnet(build: Callable[..., Any]) -> Callable[[bool], tuple[nn.Module, int]]:
    """The small stem: one 3×3 convolution of stride 1 in place of 7×7 of stride 2, and no max-pool."""

    def backbone(small_stem: bool) -> tuple[nn.Module, int]:
        network = build(weights=None)
        if small_stem:
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        features = network.fc.in_features
        network.fc = nn.Identity()
        return network, features

    return backbone


def _mobilenetv2(small_stem: bool) -> tuple[nn.Module, int]:
    """The small stem: stride 1 instead of 2 in the first convolution and in the first 24-channel block."""
    network = torchvision.models.mobilenet_v2(weights=None)
    if small_stem:
        network.features[0][0].stride = (1, 1)
        network.features[2].conv[1][0].stride = (1, 1)
    features = network.last_channel
    network.classifier = nn.Identity()
    return network, features


def _shufflenetv2(small_stem: bool) -> tuple[nn.Module, int]:
    """The small stem: stride 1 instead of 2 in the first convolution, and no max-pool."""
    network = torchvision.models.shufflenet_v2_x1_0(weights=None)
    if small_stem:
        network.conv1[0].stride = (1, 1)
        network.maxpool = nn.Identity()
    features = network.fc.in_features
    network.fc = nn.Identity()
    return network, features


BACKBONES: dict[str, Callable[[bool], tuple[nn.Module, int]]] = {
    "small": _small,
    "resnet18": _resnet(torchvision.models.resnet18),
    "resnet34": _resnet(torchvision.models.resnet34),
    "resnet50": _resnet(torchvision.models.resnet50),
    "mobilenetv2": _mobilenetv2,
    "shufflenetv2": _shufflenetv2,
}
"""By name: given whether to use the small-image stem, a network [N, 3, H, W] → [N, features], and its features."""
