"""Corruptions have the strength that their authors give, and grow with the severity."""

import colorsys
import math
from itertools import pairwise

import pytest
import torch

from dogo_fast.evaluation import CORRUPTIONS, corrupt

GREY = torch.full((64, 3, 32, 32), 128, dtype=torch.uint8)


def photographs(count: int = 24) -> torch.Tensor:
    """Smooth pictures with edges."""
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=source)
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    smooth[:, :, 10:20, 8:24] = torch.rand(count, 3, 1, 1, generator=source)
    return (smooth * 255).to(torch.uint8)


def corrupted(images: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    return corrupt(images, name, severity, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_more(name: str):
    images = photographs()
    changes = [float((corrupted(images, name, s).float() - images.float()).abs().mean()) for s in range(1, 6)]
    assert changes[0] > 0.1
    # the first two severities of saturate take colour away, the others add it; those of pixelate cut at other places
    if name not in ("saturate", "pixelate"):
        assert all(after >= 0.95 * before for before, after in pairwise(changes)), changes
        assert changes[-1] > 1.2 * changes[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_generator_gives_the_same_images_and_another_size_works(name: str):
    images = photographs(4)
    assert torch.equal(corrupted(images, name, 3), corrupted(images, name, 3))
    for side in (8, 33):
        small = images[:, :, :8, :8] if side == 8 else torch.nn.functional.interpolate(images, (side, side))
        assert corrupted(small, name, 5).shape == small.shape


def test_noise_has_the_published_deviations():
    for name, deviation in (
        ("gaussian-noise", 0.08),
        ("speckle-noise", 0.12 * 128 / 255),
        ("shot-noise", math.sqrt(128 / 255 / 100)),
    ):
        found = (corrupted(GREY, name, 3).double() / 255).std().item()
        assert found == pytest.approx(deviation, rel=0.02), name
    changed = corrupted(GREY, "impulse-noise", 3)
    assert set(changed.unique().tolist()) == {0, 128, 255}
    assert (changed != 128).double().mean().item() == pytest.approx(0.03, rel=0.05)


def test_colour_changes_are_those_of_hsv():
    images = photographs(2)
    for name, severity, change in (
        ("brightness", 3, lambda h, s, v: (h, s, min(1, v + 0.15))),
        ("saturate", 5, lambda h, s, v: (h, min(1, 2.5 * s + 0.2) if s > 0 else 0, v)),
    ):
        ours = corrupted(images, name, severity).permute(0, 2, 3, 1).reshape(-1, 3)[::7]
        rows = (images.permute(0, 2, 3, 1).reshape(-1, 3)[::7] / 255).tolist()
        exact = torch.tensor([colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*row))) for row in rows]) * 255
        assert float((ours - exact).abs().max()) <= 1.01


def test_blurs_and_contrast_keep_a_flat_image_and_the_mean():
    for name in ("gaussian-blur", "defocus-blur", "motion-blur", "zoom-blur", "contrast", "pixelate"):
        assert float((corrupted(GREY, name, 5).float() - 128).abs().max()) <= 1, name
        images = photographs()
        before, after = images.float().mean(), corrupted(images, name, 5).float().mean()
        assert float((after - before).abs()) < 4, name


@pytest.mark.parametrize(("name", "severity", "images"), [("snow", 1, GREY), ("fog", 6, GREY), ("fog", 1, GREY[0])])
def test_what_is_not_allowed_is_named(name: str, severity: int, images: torch.Tensor):
    with pytest.raises(ValueError, match=r"'snow'|got 'fog' and 6|\(3, 32, 32\)"):
        corrupted(images, name, severity)
