"""What views and steps are measured against: torchvision on the CPU, kornia on the device, a step like the authors'.

torchvision draws once a call, so each view of each image is a call; kornia draws for each image of a batch.
"""

from collections.abc import Callable

import kornia.augmentation as kornia
import torch
from torch import Tensor
from torchvision.transforms import v2

from dogo_fast import reference
from dogo_fast.peers import build_peer
from dogo_fast.views import VIEW_RECIPES, ViewRecipe, blur_size

Views = Callable[[Tensor], Tensor]
"""Images uint8 [N, 3, S, S] to one view each, normalised float32."""

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def torchvision_views(recipe: ViewRecipe, size: int) -> Views:
    """v2 on uint8 tensors, one image after the other on one core, as a DataLoader's worker does it."""
    jitter = v2.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    blur = (
        [v2.RandomApply([v2.GaussianBlur(blur_size(size), recipe.blur_deviation)], recipe.blur)] if recipe.blur else []
    )
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, recipe.crop_area, recipe.crop_ratio, antialias=True),
            v2.RandomHorizontalFlip(recipe.flip),
            v2.RandomApply([jitter], recipe.jitter),
            v2.RandomGrayscale(recipe.grayscale),
            *blur,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
    )
    return lambda images: torch.stack([transform(image) for image in images])


def kornia_views(recipe: ViewRecipe, size: int) -> Views:
    """Batched, in float32."""
    blur = (
        [kornia.RandomGaussianBlur((blur_size(size),) * 2, recipe.blur_deviation, p=recipe.blur)] if recipe.blur else []
    )
    transform = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((size, size), recipe.crop_area, recipe.crop_ratio),
        kornia.RandomHorizontalFlip(p=recipe.flip),
        kornia.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue, p=recipe.jitter),
        kornia.RandomGrayscale(p=recipe.grayscale),
        *blur,
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(DEVIATION)),
        data_keys=["input"],
    )
    return lambda images: transform(images.to(torch.float32) / 255)


def authors_step(backbone: str, size: int, device: str) -> Callable[[Tensor], None]:
    """A step on images, uint8 [N, 3, S, S] on the CPU, as the authors' loop does it, with kinder parts: views by
    torchvision on the CPU, float32 in eager, the dense loss (by matrix products; theirs broadcasts), two plain Adams, a
    loss read back every step."""
    views = torchvision_views(VIEW_RECIPES["cifar"], size)
    peers = [build_peer(backbone, size, 0, number).to(device).train() for number in (1, 2)]
    optimisers = [torch.optim.Adam(peer.parameters(), lr=1e-3, foreach=False) for peer in peers]

    def step(images: Tensor) -> None:
        pairs = []
        for peer in peers:
            a, b = (views(images).to(device) for _ in range(2))
            pairs.append((peer(a).projections, peer(b).projections))
        first, second = pairs
        output = reference.dogo_loss(first, second)
        for optimiser in optimisers:
            optimiser.zero_grad()
        output.loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        output.loss.item()

    return step
