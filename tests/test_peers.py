"""Peers are torchvision's networks under torchvision's names; only the stem for small images is ours."""

import pytest
import torch
import torchvision

from dogo_fast.peers import BACKBONES, Peer

ORIGINALS = {
    "resnet18": (torchvision.models.resnet18, "fc", 512),
    "resnet34": (torchvision.models.resnet34, "fc", 512),
    "resnet50": (torchvision.models.resnet50, "fc", 2048),
    "mobilenetv2": (torchvision.models.mobilenet_v2, "classifier", 1280),
    "shufflenetv2": (torchvision.models.shufflenet_v2_x1_0, "fc", 1024),
}


def test_every_backbone_is_covered_here():
    assert set(BACKBONES) == {*ORIGINALS, "small"}


@pytest.mark.parametrize("name", ORIGINALS)
def test_large_image_backbone_takes_torchvision_weights_and_gives_its_features(name: str):
    build, classifier, features = ORIGINALS[name]
    original = build(weights=None).eval()
    setattr(original, classifier, torch.nn.Identity())
    peer = Peer(name, 224).eval()
    peer.backbone.load_state_dict(original.state_dict(), strict=True)
    images = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(peer.backbone(images), original(images))
    assert peer.features == features == peer.backbone(images).shape[1]


@pytest.mark.parametrize("name", ORIGINALS)
def test_small_image_backbone_keeps_torchvision_names_and_all_shapes_but_the_first(name: str):
    build, classifier, _ = ORIGINALS[name]
    shapes = {key: value.shape for key, value in Peer(name, 32).backbone.state_dict().items()}
    theirs = {k: v.shape for k, v in build(weights=None).state_dict().items() if not k.startswith(f"{classifier}.")}
    assert shapes.keys() == theirs.keys()
    different = {key for key in shapes if shapes[key] != theirs[key]}
    assert different == ({"conv1.weight"} if name.startswith("resnet") else set())


@pytest.mark.parametrize("name", ORIGINALS)
def test_small_image_backbone_keeps_a_4_by_4_map_at_32_pixels(name: str):
    sizes = {}
    peer = Peer(name, 32).eval()

    def remember(module, inputs, output):
        sizes[output.shape[1]] = tuple(output.shape[2:])

    for module in peer.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(remember)
    with torch.no_grad():
        peer.backbone(torch.rand(1, 3, 32, 32))
    assert sizes[peer.features] == (4, 4)


@pytest.mark.parametrize("name", BACKBONES)
def test_peer_maps_digits_to_projections_and_learns_in_every_parameter(name: str):
    peer = Peer(name, 8)
    projections = peer(torch.rand(4, 3, 8, 8))
    assert projections.shape == (4, 128)
    projections.square().sum().backward()
    # On digits the last maps are one pixel: weights that only meet the padding get zeros, but all are in the graph.
    assert all(parameter.grad is not None for parameter in peer.parameters())


def test_small_network_halves_the_map_three_times():
    peer = Peer("small", 32).eval()
    images = torch.rand(2, 3, 32, 32)
    x = images
    with torch.no_grad():
        for layer in list(peer.backbone)[:-2]:
            x = layer(x)
        assert x.shape == (2, 256, 4, 4)
        torch.testing.assert_close(peer.backbone(images), x.mean(dim=(2, 3)))
