"""The peers: an encoder without its classifier (the backbone) and the heads of its method, SimCLR's or SimSiam's.

Backbones come from torchvision and timm, never with downloaded weights, and keep their own parameter names; only the
stem for images under 100 px is ours, and so are the wide residual networks (``wrn-10-2``: depth 10, twice the width).
``small`` is a compact network that trains in seconds on a CPU, ``medium`` the same with twice the channels, four times
the work. Any other ``nn.Module`` that maps [N, 3, H, W] to [N, features] serves as well.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torchvision
from torch import Tensor, nn

from dogo_fast.philox import derive_seed

SMALL_IMAGE = 100
"""Images with fewer pixels than this a side get the small-image stem."""

METHODS = ("simclr", "simsiam")
PROJECTION_HIDDEN, PROJECTION_WIDTH = 512, 128
"""SimCLR's head, as in the authors' code."""
SIMSIAM_WIDTH, SIMSIAM_BOTTLENECK = 2048, 512
"""SimSiam's projector and predictor (section 3)."""
TIMM = "timm:"


class PeerOutput(NamedTuple):
    """What a peer makes of 2N views: projections [2N, D], and SimSiam's predictions [2N, D] (None for SimCLR)."""

    projections: Tensor
    predictions: Tensor | None


class Peer(nn.Module):
    """One of the two networks that learn together: a backbone and the heads of its method.

    Args:
        backbone: maps images [N, 3, H, W] to features [N, F].
        features: F.
        method: ``"simclr"`` (a projection head) or ``"simsiam"`` (a projector and a predictor).

    Raises:
        ValueError: another method.
    """

    def __init__(self, backbone: nn.Module, features: int, method: str = "simclr") -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        self.method = method
        self.features = features
        self.backbone = backbone
        self.projector = _simclr_head(features) if method == "simclr" else _simsiam_projector(features)
        self.predictor = None if method == "simclr" else _simsiam_predictor()

    @property
    def projection_width(self) -> int:
        """Columns of the projections."""
        return PROJECTION_WIDTH if self.predictor is None else SIMSIAM_WIDTH

    def forward(self, images: Tensor) -> PeerOutput:
        """Normalised images [2N, 3, H, W] to projections and predictions; the losses normalise those."""
        projections = self.projector(self.backbone(images))
        return PeerOutput(projections, None if self.predictor is None else self.predictor(projections))

    def heads(self) -> dict[str, Tensor]:
        """The weights of what is not the backbone."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}


def _layer(inputs: int, outputs: int, *, affine: bool = True, activation: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=affine)]
    return [*layers, nn.ReLU(inplace=True)] if activation else layers


def _simclr_head(features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, PROJECTION_HIDDEN),
        nn.BatchNorm1d(PROJECTION_HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(PROJECTION_HIDDEN, PROJECTION_WIDTH),
    )


def _simsiam_projector(features: int) -> nn.Sequential:
    return nn.Sequential(
        *_layer(features, SIMSIAM_WIDTH),
        *_layer(SIMSIAM_WIDTH, SIMSIAM_WIDTH),
        *_layer(SIMSIAM_WIDTH, SIMSIAM_WIDTH, affine=False, activation=False),
    )


def _simsiam_predictor() -> nn.Sequential:
    return nn.Sequential(*_layer(SIMSIAM_WIDTH, SIMSIAM_BOTTLENECK), nn.Linear(SIMSIAM_BOTTLENECK, SIMSIAM_WIDTH))


def build_peer(backbone: str | nn.Module, image_size: int, seed: int, number: int, method: str = "simclr") -> Peer:
    """Peer 1 or 2, channels-last, with initial weights that depend on its own name, method, number and the seed only.

    Args:
        backbone: a name that ``check_backbone_name`` allows, or a module, whose own weights stay.
        image_size: height and width of the views, pixels.
        seed, number: of the initial weights; 1 or 2.
        method: see ``Peer``.

    Raises:
        ValueError: a backbone that does not map [2, 3, image_size, image_size] to [2, features].
    """
    with torch.random.fork_rng(devices=[]), _float32_by_default():
        torch.manual_seed(derive_seed(seed, f"peer {number}"))
        network = build_backbone(backbone, image_size) if isinstance(backbone, str) else backbone
        return Peer(network, count_features(network, image_size), method).to(memory_format=torch.channels_last)


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """New networks are float32 whatever torch.set_default_dtype says: precision is an option of training."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_backbone(name: str, image_size: int) -> nn.Module:
    """A named backbone with new weights; under 100 pixels torchvision's networks get their small-image stem.

    ``build_backbone("resnet18", 32).load_state_dict(weights)`` takes the weights of a run folder.

    Raises:
        ValueError: a name that ``check_backbone_name`` does not allow.
    """
    try:
        check_backbone_name(name)
    except ValueError as error:
        raise ValueError(f"a backbone {error}, got {name!r}") from None
    if name.startswith(TIMM):
        import timm

        options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
        try:  # a vision transformer's positions are made for one size
            network: nn.Module = timm.create_model(name.removeprefix(TIMM), **options, img_size=image_size)
        except TypeError:
            network = timm.create_model(name.removeprefix(TIMM), **options)
        return network
    return BACKBONES[name](image_size < SMALL_IMAGE)


def check_backbone_name(name: str) -> None:
    """Refuse what is neither a key of ``BACKBONES`` nor ``timm:NAME`` with a name that timm knows.

    Raises:
        ValueError: the message says what is allowed.
    """
    if name.startswith(TIMM):
        if importlib.util.find_spec("timm") is None:
            raise ValueError(f"needs timm for {name} (pip install timm)")
        import timm

        if not timm.is_model(name.removeprefix(TIMM)):
            raise ValueError(f"must be a model that timm {timm.__version__} knows (timm.list_models())")
    elif name not in BACKBONES:
        raise ValueError(f"must be of {', '.join(BACKBONES)} or timm:NAME")


@torch.no_grad()
def count_features(network: nn.Module, image_size: int) -> int:
    """How many features a backbone gives; it is called once, in evaluation mode.

    Raises:
        ValueError: one that does not map [2, 3, image_size, image_size] to [2, features].
    """
    parameter = next(network.parameters(), torch.empty(0))
    images = torch.zeros(2, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        features = network(images)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"a backbone must take images {tuple(images.shape)}, this one fails: {reason}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2 or not features.shape[1]:
        raise ValueError(f"a backbone must map images {tuple(images.shape)} to features [2, F], got {shape}")
    return features.shape[1]


class SmallNetwork(nn.Sequential):
    """Four blocks of 3×3 convolution, batch norm and ReLU, halved in size between them: [N, 3, H, W] to [N, 256·widen].

    Args:
        widen: factor of the channels.
    """

    def __init__(self, widen: int = 1) -> None:
        widths = (3, *(widen * width for width in (32, 64, 128, 256)))
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            if before != 3:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each after its batch norm and ReLU, beside what they are added to: the input, or where the
    shape changes a 1×1 convolution of its activation (Wide Residual Networks, arXiv 1605.07146, figure 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        active = self.bn1(images).relu()
        added = images if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.conv2(self.bn2(self.conv1(active)).relu())
        return added + residual


class WideResNet(nn.Sequential):
    """WRN-depth-widen for images of 32 pixels (arXiv 1605.07146, table 1): [N, 3, H, W] to [N, 64·widen].

    Args:
        depth: 6n + 4 layers, n blocks in each of three groups.
        widen: factor of the channels 16, 32 and 64.
        small_stem: without it the first convolution, on larger images, has stride 2.
    """

    def __init__(self, depth: int, widen: int, small_stem: bool = True) -> None:
        widths = (16, *(widen * width for width in (16, 32, 64)))
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1 if small_stem else 2, padding=1, bias=False)]
        for group, (before, after) in enumerate(pairwise(widths)):
            for block in range((depth - 4) // 6):
                layers.append(WideBlock(after if block else before, after, 1 if block or not group else 2))
        super().__init__(
            *layers, nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _small(widen: int) -> Callable[[bool], nn.Module]:
    return lambda small_stem: SmallNetwork(widen)


def _wide(depth: int, widen: int) -> Callable[[bool], nn.Module]:
    return lambda small_stem: WideResNet(depth, widen, small_stem)


def _resnet(build: Callable[..., Any]) -> Callable[[bool], nn.Module]:
    """The small stem: one 3×3 convolution of stride 1 in place of 7×7 of stride 2, and no max-pool."""

    def backbone(small_stem: bool) -> nn.Module:
        network: nn.Module = build(weights=None)
        if small_stem:
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.get_parameter("conv1.weight"), mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        network.fc = nn.Identity()
        return network

    return backbone


def _mobilenetv2(small_stem: bool) -> nn.Module:
    """The small stem: stride 1 instead of 2 in the first convolution and in the first 24-channel block."""
    network: nn.Module = torchvision.models.mobilenet_v2(weights=None)
    if small_stem:
        cast(nn.Conv2d, network.get_submodule("features.0.0")).stride = (1, 1)
        cast(nn.Conv2d, network.get_submodule("features.2.conv.1.0")).stride = (1, 1)
    network.classifier = nn.Identity()
    return network


def _shufflenetv2(small_stem: bool) -> nn.Module:
    """The small stem: stride 1 instead of 2 in the first convolution, and no max-pool."""
    network: nn.Module = torchvision.models.shufflenet_v2_x1_0(weights=None)
    if small_stem:
        cast(nn.Conv2d, network.get_submodule("conv1.0")).stride = (1, 1)
        network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


BACKBONES: dict[str, Callable[[bool], nn.Module]] = {
    "small": _small(1),
    "medium": _small(2),
    "resnet18": _resnet(torchvision.models.resnet18),
    "resnet34": _resnet(torchvision.models.resnet34),
    "resnet50": _resnet(torchvision.models.resnet50),
    "wrn-10-2": _wide(10, 2),
    "wrn-16-2": _wide(16, 2),
    "wrn-28-2": _wide(28, 2),
    "mobilenetv2": _mobilenetv2,
    "shufflenetv2": _shufflenetv2,
}
"""By name: given whether to use the small-image stem, a network [N, 3, H, W] → [N, features]."""
