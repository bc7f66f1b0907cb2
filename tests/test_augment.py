"""Views equal torchvision's for the same draws; the draws follow the recipe, image by image."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision_functional

from dogo_fast import augment
from dogo_fast.augment import VIEW_RECIPES, ViewRecipe, apply_draws, draw_views, make_views


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator(5))


@pytest.mark.parametrize("size", [8, 32])
def test_recipe_without_changes_gives_the_image_itself(size: int):
    images = random_images(4, size)
    assert torch.equal(make_views(images, ViewRecipe(), generator()), images / 255)


def test_crop_and_flip_equal_torchvision():
    images = random_images(32) / 255
    draws = draw_views(ViewRecipe((0.08, 1.0), (3 / 4, 4 / 3), flip=0.5), 32, 32, 32, generator())
    views = apply_draws(images, draws)
    assert draws.boxes[:, 2:].unique(dim=0).shape[0] > 20
    for image, view, box, flipped in zip(images, views, draws.boxes.int().tolist(), draws.flipped, strict=True):
        expected = torchvision_functional.resized_crop(image, *box, size=[32, 32], antialias=True)
        torch.testing.assert_close(view, expected.flip(-1) if flipped else expected, rtol=0, atol=1e-6)


def test_rotation_equals_torchvision():
    image = torch.nn.functional.pad(random_images(1, 16) / 255, (8, 8, 8, 8))  # a black border: both fill with black
    draws = replace(draw_views(ViewRecipe(), 1, 32, 32, generator()), angles=torch.tensor([math.radians(20)]))
    expected = torchvision_functional.rotate(image, 20, interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(apply_draws(image, draws), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("adjust_brightness", (0.0, 0.4, 1.0, 1.7)),
        ("adjust_contrast", (0.0, 0.4, 1.0, 1.7)),
        ("adjust_saturation", (0.0, 0.4, 1.0, 1.7)),
        ("adjust_hue", (-0.5, -0.1, 0.0, 0.3)),
    ],
)
def test_colour_adjustment_equals_torchvision(name: str, factors: tuple[float, ...]):
    images = random_images(4) / 255
    images[:, :, 0] = images[:, :1, 0]  # a row of greys: no hue
    images[:, :, 1, 0] = torch.tensor([0.0, 1.0, 1.0])
    adjusted = getattr(augment, name)(images, torch.tensor(factors)[:, None, None, None])
    for image, view, factor in zip(images, adjusted, factors, strict=True):
        expected = getattr(torchvision_functional, name)(image, factor)
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_jitter_runs_in_the_drawn_order_and_greys_last():
    images = random_images(24) / 255
    recipe = ViewRecipe(jitter=0.7, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.3)
    draws = draw_views(recipe, 24, 32, 32, generator(1))
    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    for number, view in enumerate(apply_draws(images, draws)):
        expected = images[number]
        for index in draws.order[number].tolist():
            if index >= 0:
                factor = float(draws.factors[number, index])
                expected = getattr(torchvision_functional, names[index])(expected, factor)
        if draws.grey[number]:
            expected = torchvision_functional.rgb_to_grayscale(expected, num_output_channels=3)
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_draws_follow_the_recipe():
    recipe = replace(VIEW_RECIPES["cifar10"], rotation=30.0)
    draws = draw_views(recipe, 20_000, 32, 32, generator())
    top, left, height, width = draws.boxes.T
    assert torch.equal(draws.boxes, draws.boxes.round())
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 32).all() and (left + width <= 32).all()
    area = height * width / 32**2
    assert 0.18 < area.min() < 0.22 and area.max() == 1.0
    assert (height / width).log().abs().max() < math.log(4 / 3) + 0.1
    assert float((left == 0).float().mean()) < 0.5 and ((left + width) == 32).any()
    assert float(draws.flipped.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(draws.grey.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float((draws.order[:, 0] >= 0).float().mean()) == pytest.approx(0.8, abs=0.02)
    jittered = draws.order[draws.order[:, 0] >= 0]
    orders, counts = jittered.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and (counts / len(jittered) - 1 / 24).abs().max() < 0.01
    for index, (low, high) in enumerate(((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))):
        factors = draws.factors[:, index]
        assert low <= factors.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < factors.max() <= high
    assert math.radians(29) < draws.angles.max() <= math.radians(30)


def test_crop_that_never_fits_falls_back_to_the_largest_centred_one():
    draws = draw_views(ViewRecipe((1.0, 1.0), (2.0, 2.0)), 3, 32, 32, generator())
    assert draws.boxes.tolist() == [[8.0, 0.0, 16.0, 32.0]] * 3


def test_every_image_gets_its_own_draw():
    images = random_images(1).repeat(16, 1, 1, 1)
    views = make_views(images, VIEW_RECIPES["cifar10"], generator())
    assert len(views.flatten(1).unique(dim=0)) == 16


def test_seed_repeats_views_and_the_next_call_differs():
    images = random_images(8)

    def two_calls(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        source = generator(seed)
        return tuple(make_views(images, VIEW_RECIPES["cifar10"], source) for _ in range(2))

    first, second = two_calls(1)
    assert torch.equal(first, two_calls(1)[0]) and torch.equal(second, two_calls(1)[1])
    assert not torch.equal(first, second) and not torch.equal(first, two_calls(2)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_views_are_the_same_on_the_gpu():
    images = random_images(64)
    views = make_views(images.cuda(), VIEW_RECIPES["cifar10"], generator())
    torch.testing.assert_close(views.cpu(), make_views(images, VIEW_RECIPES["cifar10"], generator()), rtol=0, atol=1e-4)
