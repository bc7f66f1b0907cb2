"""Peers are torchvision's networks under torchvision's names; only the stem for small images is ours."""

import pytest
import torch
import torchvision

from dogo_fast.peers import BACKBONES, build_backbone, build_peer, check_backbone_name, count_features

ORIGINALS = {
    "resnet18": (torchvision.models.resnet18, "fc", 512),
    "resnet34": (torchvision.models.resnet34, "fc", 512),
    "resnet50": (torchvision.models.resnet50, "fc", 2048),
    "mobilenetv2": (torchvision.models.mobilenet_v2, "classifier", 1280),
    "shufflenetv2": (torchvision.models.shufflenet_v2_x1_0, "fc", 1024),
}
WIDE = {"wrn-10-2": 302_416, "wrn-16-2": 691_674 - 1290, "wrn-28-2": 1_467_610 - 1290}
"""Parameters; of the last two as others count them, less the classifier of ten classes."""


def test_every_backbone_is_covered_here():
    assert set(BACKBONES) == {*ORIGINALS, *WIDE, "small", "medium"}


def test_medium_has_twice_the_channels_of_small():
    small, medium = (build_backbone(name, 32) for name in ("small", "medium"))
    widths = [[layer.out_channels for layer in each if isinstance(layer, torch.nn.Conv2d)] for each in (small, medium)]
    assert widths[1] == [2 * width for width in widths[0]]
    assert [type(layer) for layer in small] == [type(layer) for layer in medium]


@pytest.mark.parametrize("name", WIDE)
def test_wide_residual_networks_have_the_published_size_and_keep_an_8_by_8_map_at_32_pixels(name: str):
    network = build_backbone(name, 32)
    assert sum(parameter.numel() for parameter in network.parameters()) == WIDE[name]
    assert torch.nn.Sequential(*list(network)[:-2])(torch.rand(1, 3, 32, 32)).shape == (1, 128, 8, 8)
    assert count_features(network, 32) == 128


@pytest.mark.parametrize("name", ORIGINALS)
def test_large_image_backbone_takes_torchvision_weights_and_gives_its_features(name: str):
    build, classifier, features = ORIGINALS[name]
    original = build(weights=None).eval()
    setattr(original, classifier, torch.nn.Identity())
    backbone = build_backbone(name, 224).eval()
    backbone.load_state_dict(original.state_dict(), strict=True)
    images = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), original(images))
    assert count_features(backbone, 112) == features


@pytest.mark.parametrize("name", ORIGINALS)
def test_small_image_backbone_keeps_torchvision_names_and_all_shapes_but_the_first(name: str):
    build, classifier, _ = ORIGINALS[name]
    shapes = {key: value.shape for key, value in build_backbone(name, 32).state_dict().items()}
    theirs = {k: v.shape for k, v in build(weights=None).state_dict().items() if not k.startswith(f"{classifier}.")}
    assert shapes.keys() == theirs.keys()
    different = {key for key in shapes if shapes[key] != theirs[key]}
    assert different == ({"conv1.weight"} if name.startswith("resnet") else set())


@pytest.mark.parametrize("name", ORIGINALS)
def test_small_image_backbone_keeps_a_4_by_4_map_at_32_pixels(name: str):
    sizes = {}
    backbone = build_backbone(name, 32).eval()

    def remember(module, inputs, output):
        sizes[output.shape[1]] = tuple(output.shape[2:])

    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(remember)
    with torch.no_grad():
        backbone(torch.rand(1, 3, 32, 32))
    assert sizes[count_features(backbone, 32)] == (4, 4)


@pytest.mark.parametrize("method", ["simclr", "simsiam"])
@pytest.mark.parametrize("name", BACKBONES)
def test_peer_maps_digits_to_projections_and_learns_in_every_parameter(name: str, method: str):
    peer = build_peer(name, 8, 0, 1, method)
    projections, predictions = peer(torch.rand(4, 3, 8, 8))
    assert projections.shape == (4, 128 if method == "simclr" else 2048)
    assert (predictions is None) == (method == "simclr")
    last = projections if predictions is None else predictions
    assert last.shape == projections.shape
    last.square().sum().backward()
    # On digits the last maps are one pixel: weights that only meet the padding get zeros, but all are in the graph.
    assert all(parameter.grad is not None for parameter in peer.parameters())


def test_simsiam_heads_are_the_papers():
    """Three layers of 2048, a norm after each, the last without weights; a bottleneck of 512, no last norm."""
    peer = build_peer("small", 8, 0, 1, "simsiam")
    shapes = {name: tuple(value.shape) for name, value in peer.heads().items() if name.endswith("weight")}
    assert shapes == {
        **{f"projector.{layer}.weight": (2048, 256 if layer == 0 else 2048) for layer in (0, 3, 6)},
        **{f"projector.{layer}.weight": (2048,) for layer in (1, 4)},
        "predictor.0.weight": (512, 2048),
        "predictor.1.weight": (512,),
        "predictor.3.weight": (2048, 512),
    }


def test_initial_weights_depend_on_seed_number_and_name_alone():
    def weights(seed: int, number: int) -> torch.Tensor:
        torch.manual_seed(seed + number)  # must not matter
        return build_peer("small", 8, seed, number).projector[0].weight

    assert torch.equal(weights(0, 1), weights(0, 1))
    assert len({float(weights(seed, number).sum()) for seed in (0, 1) for number in (1, 2)}) == 4


def test_counting_features_leaves_modes_and_statistics_alone():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.AdaptiveAvgPool2d(1))
    network = torch.nn.Sequential(network, torch.nn.Flatten())
    network[0][1].eval()
    assert count_features(network, 8) == 5
    assert network.training and not network[0][1].training and network[0][1].num_batches_tracked == 0


def test_timm_gives_backbones_under_its_own_names():
    import timm

    backbone = build_backbone("timm:resnet10t", 112)
    theirs = timm.create_model("resnet10t", num_classes=0)
    assert backbone.state_dict().keys() == theirs.state_dict().keys()
    assert count_features(backbone, 112) == theirs.num_features


@pytest.mark.parametrize(
    ("name", "message"),
    [("vgg", "must be of small, medium, resnet18.* or timm:NAME"), ("timm:vgg0", "must be a model that timm")],
)
def test_an_unknown_backbone_is_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        check_backbone_name(name)


def test_small_network_halves_the_map_three_times():
    backbone = build_backbone("small", 32).eval()
    images = torch.rand(2, 3, 32, 32)
    x = images
    with torch.no_grad():
        for layer in list(backbone)[:-2]:
            x = layer(x)
        assert x.shape == (2, 256, 4, 4)
        torch.testing.assert_close(backbone(images), x.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:resnet10t"])
def test_a_network_of_timm_takes_views_of_another_size_than_its_own(name: str):
    """A vision transformer's positions are made for one size."""
    peer = build_peer(name, 64, 0, 1)
    assert peer(torch.zeros(2, 3, 64, 64)).projections.shape[0] == 2
