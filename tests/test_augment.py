"""Views are torchvision's pictures for the same draws, the draws follow the recipe and depend on nothing else than
seed, epoch, index and view."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from forms import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as torchvision_functional

from dogo_fast.pictures import Pictures
from dogo_fast.views import VIEW_RECIPES, Augmentation, ViewDraws, ViewRecipe, blur_size

TOLERANCE = 2 / 255
"""What is promised; where nothing is rounded to 16 bits, float32 arithmetic stays under the next."""
ARITHMETIC = 1e-4
ADJUSTMENTS = ("brightness", "contrast", "saturation", "hue")


@pytest.fixture(params=["reference", "cpp", "interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def how(request: pytest.FixtureRequest) -> dict[str, str]:
    """Where and by what the views are made."""
    if request.param == "interpreter" and torch.cuda.is_available():
        pytest.skip("the kernels are compiled for the GPU here; its own variant of this test runs them")
    kind = {
        "reference": ("reference", "cpu"),
        "cpp": ("cpp", "cpu"),
        "interpreter": ("triton", "cpu"),
        "gpu": ("triton", "cuda"),
    }
    backend, device = kind[request.param]
    return {"backend": backend, "device": device}


def random_images(count: int, height: int = 32, width: int | None = None, seed: int = 0) -> Tensor:
    """Blobs, not noise: neighbours differ little, as in photographs, and all grey values occur."""
    shape = (count, 3, height // 4 + 2, (width or height) // 4 + 2)
    small = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(small, (height, width or height), mode="bicubic")
    return ((smooth * 1.4 - 0.2).clamp(0, 1) * 255).round().to(torch.uint8)


def make(
    images: Tensor,
    recipe: ViewRecipe,
    how: dict[str, str],
    draws: ViewDraws | None = None,
    views: int = 2,
    **options: int,
) -> tuple[Tensor, ViewDraws]:
    """Views [views, N, 3, S, S] on the CPU, and the draws behind them."""
    augmentation = Augmentation([recipe] * views, options.get("view_size", images.shape[-1]), 7, **how)
    images = images.to(how["device"])
    indices = torch.arange(len(images), device=how["device"])
    draws = augmentation.draw(images, indices) if draws is None else ViewDraws(*(x.to(how["device"]) for x in draws))
    made = augmentation(images, indices, draws)
    return made.cpu(), ViewDraws(*(x.cpu() for x in draws))


def expected_view(image: Tensor, draws: ViewDraws, view: int, number: int, size: int, blur: int) -> Tensor:
    """The same by torchvision's functions for tensors, from the drawn numbers."""
    d = {name: getattr(draws, name)[view, number].item() for name in ViewDraws._fields}
    picture = torchvision_functional.resized_crop(
        image / 255,
        *(d[name] for name in ("top", "left", "height", "width")),
        [size, size],
        InterpolationMode.BILINEAR,
        antialias=True,
    )
    if d["flipped"]:
        picture = torchvision_functional.horizontal_flip(picture)
    for turn in range(4):
        for name in ADJUSTMENTS:
            if d[f"place_{name}"] == turn:
                picture = getattr(torchvision_functional, f"adjust_{name}")(picture, d[name])
    if d["grey"]:
        picture = torchvision_functional.rgb_to_grayscale(picture, num_output_channels=3)
    if d["deviation"] > 0:
        picture = torchvision_functional.gaussian_blur(picture, [blur, blur], [d["deviation"]] * 2)
    return torchvision_functional.solarize(picture, 0.5) if d["solarised"] else picture


def worst(views: Tensor, images: Tensor, draws: ViewDraws, blur: int = 0) -> float:
    """The largest difference of a pixel from torchvision's."""
    return max(
        float(
            (views[view, number] - expected_view(images[number], draws, view, number, views.shape[-1], blur))
            .abs()
            .max()
        )
        for view in range(views.shape[0])
        for number in range(views.shape[1])
    )


ONE_CHANGE = {
    "crop": ViewRecipe((0.1, 1.0), (0.5, 2.0)),
    "flip": ViewRecipe(flip=0.5),
    "brightness": ViewRecipe(jitter=1.0, brightness=0.8),
    "contrast": ViewRecipe(jitter=1.0, contrast=0.8),
    "saturation": ViewRecipe(jitter=1.0, saturation=0.8),
    "hue": ViewRecipe(jitter=1.0, hue=0.5),
    "jitter": ViewRecipe(jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    "grayscale": ViewRecipe(grayscale=0.5),
    "solarise": ViewRecipe(solarise=0.5),
}


@pytest.mark.parametrize("change", ONE_CHANGE)
def test_each_change_is_torchvisions(change: str, how: dict[str, str]):
    images = random_images(6, 24)
    views, draws = make(images, ONE_CHANGE[change], how)
    assert not torch.equal(views[0], images / 255)
    assert worst(views, images, draws) < ARITHMETIC


@pytest.mark.parametrize("size", [24, 72])
def test_blur_is_torchvisions_in_one_tile_and_in_several(size: int, how: dict[str, str]):
    images = random_images(2, size)
    recipe = ViewRecipe(blur=1.0)
    views, draws = make(images, recipe, how, view_size=size)
    assert worst(views, images, draws, blur_size(size)) < (TOLERANCE if how["backend"] == "triton" else ARITHMETIC)
    assert float((views[0] - images / 255).abs().max()) > 4 * TOLERANCE


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 56, 24), (20, 20, 50), (72, 72, 72)])
def test_the_whole_chain_is_torchvisions(height: int, width: int, size: int, how: dict[str, str]):
    """The second size shrinks, so antialiasing matters; the last is more than one tile of the kernel."""
    images = random_images(5 if size < 60 else 2, height, width)
    views, draws = make(images, replace(VIEW_RECIPES["simclr-solarise"], solarise=0.5), how, view_size=size)
    assert worst(views, images, draws, blur_size(size)) < TOLERANCE
    without_blur = replace(VIEW_RECIPES["simclr-solarise"], blur=0.0, solarise=0.0)
    views, draws = make(images, without_blur, how, view_size=size)
    assert worst(views, images, draws) < ARITHMETIC


def test_rotation_is_torchvisions_and_repeats_the_border(how: dict[str, str]):
    images = random_images(1, 25)
    draws = make(images, ViewRecipe(), how)[1]
    for degrees in (90.0, 30.0, -20.0):
        turned = draws._replace(angle=torch.full((2, 1), math.radians(degrees)))
        view = make(images, ViewRecipe(rotation=90.0), how, turned)[0][0, 0]
        theirs = torchvision_functional.rotate(images[0] / 255, degrees, InterpolationMode.BILINEAR)
        inside = torchvision_functional.rotate(torch.ones(1, 25, 25), degrees, InterpolationMode.BILINEAR) > 0.999
        assert float(((view - theirs).abs() * inside).max()) < ARITHMETIC
    white = torch.full((1, 3, 25, 25), 255, dtype=torch.uint8)
    assert float(make(white, ViewRecipe(rotation=90.0), how, turned)[0].min()) > 1 - ARITHMETIC  # no black corners


@settings(max_examples=examples(12), deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
    index=st.integers(0, 2**31 - 5),
    size=st.sampled_from([(8, 8), (16, 16), (24, 12)]),
    recipe=st.sampled_from(["cifar", "digits", "simclr-solarise"]),
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU here")
def test_the_kernel_draws_and_paints_what_the_plain_tensors_do(
    seed: int, epoch: int, index: int, size: tuple[int, int], recipe: str
):
    images = random_images(3, *size)
    made = []
    for backend in ("triton", "reference"):
        augmentation = Augmentation([VIEW_RECIPES[recipe]] * 2, 16, seed, backend=backend)
        augmentation.epoch.fill_(epoch)
        made.append(augmentation(images, torch.arange(3) + index))
    tolerance = TOLERANCE if VIEW_RECIPES[recipe].blur else ARITHMETIC
    assert float((made[0] - made[1]).abs().max()) < tolerance


def test_threads_make_the_same_bits(cpp_device: torch.device):
    images, rows = random_images(9, 24), torch.arange(9)
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        augmentation = Augmentation([VIEW_RECIPES["simclr-solarise"]] * 3, 24, 3, backend="cpp")
        made.append(augmentation(images, rows))
    assert torch.equal(*made)


def test_extremes_of_pixels_and_crops_stay_in_range(how: dict[str, str]):
    """Black, white, grey and pure colours; crops of one pixel, in the corner and in the middle."""
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [128, 128, 128], [255, 0, 0], [0, 255, 255]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(-1, -1, 9, 9).contiguous()
    recipe = replace(VIEW_RECIPES["simclr-solarise"], jitter=1.0, hue=0.5, blur=1.0)
    views, draws = make(images, recipe, how)
    assert views.isfinite().all() and float(views.min()) >= 0 and float(views.max()) <= 1 + 1e-6
    assert worst(views, images, draws, blur_size(9)) < TOLERANCE
    one = {"height": 1, "width": 1, "top": 8, "left": 4}
    draws = draws._replace(**{name: torch.full((2, 5), value) for name, value in one.items()})
    assert worst(make(images, recipe, how, draws)[0], images, draws, blur_size(9)) < TOLERANCE


def test_a_picture_or_a_crop_outside_the_bytes_is_refused_on_a_cpu():
    augmentation = Augmentation([ViewRecipe()], 16, 0, backend="cpp")
    images = random_images(2, 16)
    whole = Pictures.of(images)
    for place in ([1, 16, 32], [-1, 16, 16], [0, 0, 16], [1536, 1, 1], [0, 2**31, 2**33]):
        moved = Pictures(whole.pixels, torch.tensor([[0, 16, 16], place]))
        draws = augmentation.draw(images, torch.arange(2))
        with pytest.raises(IndexError, match="pictures must lie within 1536 bytes, got one of"):
            augmentation(moved, torch.arange(2), draws)
    draws = augmentation.draw(images, torch.arange(2))
    for change in ({"top": 1}, {"left": -1}, {"width": 17}, {"height": 0}):
        moved = draws._replace(**{name: torch.full((1, 2), value) for name, value in change.items()})
        with pytest.raises(ValueError, match="draws must have crops within the picture"):
            augmentation(images, torch.arange(2), moved)


def of_several_sizes(device: str = "cpu") -> list[Tensor]:
    sides = [(32, 32), (20, 57), (75, 18), (1, 9), (40, 40)]
    return [random_images(1, 76, 60, seed)[0, :, :h, :w].to(device) for seed, (h, w) in enumerate(sides)]


def test_views_of_pictures_of_several_sizes_are_those_of_each_alone(how: dict[str, str]):
    pictures = of_several_sizes(how["device"])
    augmentation = Augmentation([replace(VIEW_RECIPES["simclr"], rotation=10.0)] * 2, 16, 7, **how)
    indices = torch.arange(5, device=how["device"])
    together = augmentation(Pictures.of(pictures), indices)
    for number, picture in enumerate(pictures):
        assert torch.equal(together[:, [number]], augmentation(picture[None], indices[[number]]))
    order = torch.tensor([3, 3, 0, 4], device=how["device"])
    assert torch.equal(augmentation(Pictures.of(pictures).select(order), indices[order]), together[:, order])


def test_views_of_pictures_of_several_sizes_are_torchvisions(how: dict[str, str]):
    pictures = of_several_sizes()
    augmentation = Augmentation([VIEW_RECIPES["cifar"]] * 2, 24, 7, **how)
    there, indices = Pictures.of(pictures).to(torch.device(how["device"])), torch.arange(5, device=how["device"])
    draws = augmentation.draw(there, indices)
    views, draws = augmentation(there, indices, draws).cpu(), ViewDraws(*(x.cpu() for x in draws))
    for number, picture in enumerate(pictures):
        for view in range(2):
            expected = expected_view(picture, draws, view, number, 24, 0)
            assert float((views[view, number] - expected).abs().max()) < ARITHMETIC


def test_a_buffer_is_read_from_wherever_an_anchor_lies(how: dict[str, str]):
    """As a captured step reads batches that stream."""
    if how["backend"] != "triton":
        pytest.skip("the other backends check that pictures lie in their buffer")
    pictures, indices = Pictures.of(of_several_sizes(how["device"])), torch.arange(5, device=how["device"])
    anchor = torch.empty(1, dtype=torch.uint8, device=how["device"])
    augmentation = Augmentation([VIEW_RECIPES["cifar"]] * 2, 24, 7, **how)
    assert torch.equal(augmentation(pictures.seen_from(anchor), indices), augmentation(pictures, indices))


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "recipe"), [(32, "cifar"), (96, "simclr"), (224, "simclr"), (8, "digits")])
def test_a_gpu_gives_the_pictures_of_the_cpu(size: int, recipe: str):
    images = random_images(64, size)
    indices = torch.arange(64)
    made = []
    for device in ("cpu", "cuda"):
        augmentation = Augmentation([VIEW_RECIPES[recipe]] * 4, size, 3, device=device)
        made.append(augmentation(images.to(device), indices.to(device)).cpu())
    assert float((made[0] - made[1]).abs().max()) < TOLERANCE


@pytest.mark.gpu
def test_a_captured_launch_reads_the_epoch_and_the_indices_of_its_replay():
    images = random_images(64).cuda()
    rows = torch.arange(64, device="cuda")
    augmentation = Augmentation([VIEW_RECIPES["cifar"]] * 4, 32, 3, device="cuda")
    augmentation(images, rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        views = augmentation(images, rows)
    augmentation.epoch.fill_(5)
    rows.copy_(rows.flip(0))
    graph.replay()
    assert torch.equal(views, augmentation(images, rows))


def test_rows_and_indices_may_lie_anywhere(how: dict[str, str]):
    images = Pictures.of(random_images(8, 12).to(how["device"]))
    augmentation = Augmentation([VIEW_RECIPES["cifar"]], 12, 1, **how)
    every_other = torch.arange(8, device=how["device"])[::2]
    one = torch.tensor([3], device=how["device"]).expand(4)
    for rows in (every_other, one):
        copied = rows.clone(memory_format=torch.contiguous_format)
        strided = Pictures(images.pixels, images.places.repeat_interleave(2, dim=1)[rows][:, ::2])
        assert torch.equal(augmentation(strided, rows), augmentation(images.select(copied), copied))


def test_views_depend_on_seed_epoch_index_and_view_alone(how: dict[str, str]):
    images = random_images(8, 12).to(how["device"])

    def views(rows: list[int], seed: int = 1, epoch: int = 0, count: int = 2) -> Tensor:
        augmentation = Augmentation([VIEW_RECIPES["cifar"]] * count, 12, seed, **how)
        augmentation.epoch.fill_(epoch)
        where = torch.tensor(rows, device=how["device"])
        return augmentation(images[where], where + 1000)

    whole = views(list(range(8)))
    for batch in ([3, 4], [7, 0, 3], [5]):
        assert torch.equal(views(batch), whole[:, batch])
    assert torch.equal(views([2], count=1), whole[:1, [2]])
    others = [views([2], seed=2), views([2], epoch=1)]
    assert not any(torch.equal(other, whole[:, [2]]) for other in others)
    assert not torch.equal(whole[0], whole[1])
    same = Augmentation([VIEW_RECIPES["cifar"]], 12, 1, **how)
    twins = same(images[:1].expand(8, -1, -1, -1), torch.arange(8, device=how["device"]))
    assert len(twins.flatten(2).unique(dim=1)[0]) == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_views_are_normalised_and_rounded_once_to_the_training_dtype(dtype: torch.dtype, how: dict[str, str]):
    images = random_images(4, 16).to(how["device"])
    rows = torch.arange(4, device=how["device"])
    statistics = {"mean": (0.49, 0.4, 0.6), "deviation": (0.2, 0.3, 0.25)}
    plain = Augmentation([VIEW_RECIPES["cifar"]], 16, 1, **how)(images, rows)
    exact = Augmentation([VIEW_RECIPES["cifar"]], 16, 1, **statistics, **how)(images, rows)
    mean, deviation = (torch.tensor(x, device=plain.device)[:, None, None] for x in statistics.values())
    torch.testing.assert_close(exact, (plain - mean) / deviation, rtol=0, atol=1e-5)
    rounded = Augmentation([VIEW_RECIPES["cifar"]], 16, 1, dtype=dtype, **statistics, **how)(images, rows)
    assert rounded.dtype == dtype and torch.equal(rounded, exact.to(dtype))
    assert rounded[0].is_contiguous(memory_format=torch.channels_last)


def uniformity(values: Tensor, low: float, high: float) -> float:
    """Kolmogorov and Smirnov's distance from the uniform distribution, times √N: above 1.95 once in a thousand."""
    scaled = ((values.double().flatten().sort().values - low) / (high - low)).clamp(0, 1)
    places = torch.arange(1, len(scaled) + 1) / len(scaled)
    return float((scaled - places).abs().max()) * math.sqrt(len(scaled))


def test_draws_follow_the_recipe():
    recipe = replace(VIEW_RECIPES["simclr"], rotation=30.0, solarise=0.3)
    draws = Augmentation([recipe] * 2, 64, 11).draw(of_sides(64, 64), torch.arange(20_000))
    top, left, height, width = (field.double() for field in draws[:4])
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 64).all() and (left + width <= 64).all()
    assert uniformity(draws.angle, -math.radians(30), math.radians(30)) < 1.95
    for name, low, high in (
        ("brightness", 0.2, 1.8),
        ("contrast", 0.2, 1.8),
        ("saturation", 0.2, 1.8),
        ("hue", -0.2, 0.2),
    ):
        assert uniformity(getattr(draws, name), low, high) < 1.95, name
    assert uniformity(draws.deviation[draws.deviation > 0], 0.1, 2.0) < 1.95
    for name, probability in (("flipped", 0.5), ("grey", 0.2), ("solarised", 0.3)):
        assert float(getattr(draws, name).double().mean()) == pytest.approx(probability, abs=0.01), name
    assert float((draws.deviation > 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    places = torch.stack(draws[6:10]).flatten(1)
    jittered = (places < 4).all(0)
    assert torch.equal(jittered, (places < 4).any(0)) and float(jittered.double().mean()) == pytest.approx(
        0.8, abs=0.01
    )
    orders, counts = places[:, jittered].unique(dim=1, return_counts=True)
    assert orders.shape[1] == 24 and (counts / counts.sum() - 1 / 24).abs().max() < 0.005
    for first, second in (("flipped", "grey"), ("angle", "hue"), ("brightness", "contrast")):
        pair = torch.stack([getattr(draws, name).double().flatten() for name in (first, second)])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02


def of_sides(height: int, width: int, count: int = 20_000) -> Pictures:
    """Pictures of which only the sides matter."""
    return Pictures(torch.empty(0, dtype=torch.uint8), torch.tensor([[0, height, width]]).expand(count, 3))


@pytest.mark.parametrize(
    ("height", "width", "area"), [(64, 64, 0.2), (375, 500, 0.08), (480, 160, 0.2), (50, 400, 0.08)]
)
def test_crops_are_distributed_as_torchvisions(height: int, width: int, area: float):
    """Area, ratio and corner of 20 000 crops against as many of RandomResizedCrop: two-sample Kolmogorov-Smirnov. The
    last picture is so long that the largest centred crop is often taken."""
    torch.manual_seed(0)
    ratio = (3 / 4, 4 / 3)
    blank = torch.empty(3, height, width)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(blank, [area, 1.0], list(ratio)) for _ in range(20_000)]
    ).double()
    draws = Augmentation([ViewRecipe((area, 1.0), ratio)], 64, 5).draw(of_sides(height, width), torch.arange(20_000))
    ours = torch.stack([field[0] for field in draws[:4]], dim=1).double()

    def measures(boxes: Tensor) -> list[Tensor]:
        top, left, tall, wide = boxes.T
        return [tall * wide, tall / wide, top / (height + 1 - tall), left / (width + 1 - wide)]

    for mine, other in zip(measures(ours), measures(theirs), strict=True):
        values = torch.cat([mine, other]).unique()
        gap = max(
            (
                torch.searchsorted(mine.sort().values, values, right=True)
                - torch.searchsorted(other.sort().values, values, right=True)
            )
            .abs()
            .tolist()
        )
        assert gap / 20_000 * math.sqrt(10_000) < 1.95


def test_crop_that_never_fits_falls_back_to_the_largest_centred_one(how: dict[str, str]):
    images = random_images(2, 32)
    for ratio, box in ((2.0, (8, 0, 16, 32)), (0.5, (0, 8, 32, 16)), (100.0, (15, 0, 1, 32)), (0.01, (0, 15, 32, 1))):
        views, draws = make(images, ViewRecipe((1.0, 1.0), (ratio, ratio)), how)
        assert [field[0, 0].item() for field in draws[:4]] == list(box)
        assert worst(views, images, draws) < ARITHMETIC


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_area": (0.0, 1.0)}, r"crop_area must be two numbers.*got \(0.0, 1.0\)"),
        ({"crop_area": (0.5, 1.5)}, r"crop_area must be two numbers.*<= 1, got"),
        ({"crop_ratio": (2.0, 1.0)}, r"crop_ratio must be two numbers"),
        ({"flip": 1.5}, r"flip must be from 0 to 1, got 1.5"),
        ({"hue": 0.6}, r"hue must be from 0 to 0.5, got 0.6"),
        ({"brightness": math.nan}, r"brightness must be from 0 to 10, got nan"),
        ({"blur_deviation": (0.0, 2.0)}, r"blur_deviation must be"),
    ],
)
def test_an_impossible_recipe_is_refused_by_name(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        ViewRecipe(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images.float(), r"pictures must be uint8, got torch\.float32"),
        (lambda images: images[:, :2], r"pictures must be \[N, 3, H, W\], got \(2, 2, 16, 16\)"),
        (lambda images: images[:, :, :0], r"pictures must be \[N, 3, H, W\], got"),
        (lambda images: [images[0], images], r"pictures must be \[3, H, W\], got \(2, 3, 16, 16\)"),
        (lambda images: images[:1], "indices must be one number a picture, got 2 of 1"),
    ],
)
def test_wrong_images_are_refused_by_name(change: Callable[[Tensor], Tensor], message: str):
    augmentation = Augmentation([ViewRecipe()], 16, 0)
    with pytest.raises((TypeError, ValueError), match=message):
        augmentation(change(random_images(2, 16)), torch.arange(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipes": []}, "recipes must be one recipe a view"),
        ({"view_size": 0}, "view_size must be at least 1 pixel, got 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"dtype": torch.float64}, "dtype must be float32"),
        ({"deviation": (1.0, 0.0, 1.0)}, "deviation must be above 0"),
        ({"backend": "cuda"}, "backend must be"),
        ({"recipes": [ViewRecipe(blur=1.0)], "view_size": 1}, "view_size must be above half"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(options: dict[str, object], message: str):
    arguments = {"recipes": [ViewRecipe()], "view_size": 16, "seed": 0, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        Augmentation(**arguments)
