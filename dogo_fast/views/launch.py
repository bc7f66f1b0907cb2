"""Makes the views of a batch: by kernels/augment.py on a GPU, csrc/augment.cpp on a CPU, or plain tensors anywhere."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dogo_fast.ops import extension, launches
from dogo_fast.ops.backend import interpreting, resolve_backend
from dogo_fast.pictures import Pictures
from dogo_fast.views.draws import ViewDraws, draw_views
from dogo_fast.views.recipe import ViewRecipe, blur_size
from dogo_fast.views.reference import apply_draws

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ONE_TILE = 4096
"""Pixels: a smaller view is held in registers as a whole, so that its mean grey needs no second look."""
TILE = 1024
PIXELS_A_WARP = 128
PIXELS_A_WARP_OF_TILES = 64
"""Where a view has several tiles its kernel holds 156 to 180 numbers a thread at 128 pixels a warp, on sm_90, and only
8 warps fit a multiprocessor; at 64 it holds 108 to 128, and 16 fit."""


class Augmentation:
    """Makes the views of a batch: ``augmentation(pictures, indices)``.

    Args:
        recipes: the recipe of each view; the n-th view's draws depend on n.
        view_size: side of the views, pixels.
        seed: of all draws, 0 to 2⁶³ − 1.
        mean, deviation: of each channel, in [0, 1]: views are (x − mean) / deviation.
        dtype: of the views: float32, bfloat16 or float16.
        device: of pictures and views.
        backend: ``"triton"`` (a GPU, or Triton's interpreter), ``"cpp"`` (a CPU), ``"reference"`` (plain tensors,
            anywhere) or ``"auto"``, as for the losses.

    ``epoch`` is an int64 tensor [1] on the device, to be filled before an epoch: a captured launch reads it.

    Raises:
        TypeError, ValueError: an argument that is not one of these; the message names it.
    """

    def __init__(
        self,
        recipes: Sequence[ViewRecipe],
        view_size: int,
        seed: int,
        *,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        deviation: tuple[float, float, float] = (1.0, 1.0, 1.0),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: str = "auto",
    ) -> None:
        if not recipes:
            raise ValueError("recipes must be one recipe a view, got none")
        if view_size < 1:
            raise ValueError(f"view_size must be at least 1 pixel, got {view_size}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed}")
        if dtype not in OUTPUT_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        if min(deviation) <= 0:
            raise ValueError(f"deviation must be above 0 in every channel, got {deviation}")
        self.recipes = tuple(recipes)
        self.view_size = view_size
        self.seed = seed
        self.mean, self.deviation = mean, deviation
        self.dtype = dtype
        self.table = torch.tensor([recipe.numbers() for recipe in recipes], dtype=torch.float32, device=device)
        self.state = torch.tensor([seed, 0], dtype=torch.int64, device=device)
        self.backend = resolve_backend(backend, (self.table,))
        blurs = any(recipe.blur > 0 for recipe in recipes)
        self.blur_size = blur_size(self.view_size) if blurs else 0
        if self.blur_size // 2 >= self.view_size:
            raise ValueError(f"view_size must be above half the blur's width, {self.blur_size}, got {self.view_size}")

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def epoch(self) -> Tensor:
        """The epoch that the draws depend on, int64 [1], on the device."""
        return self.state[1:]

    def draw(self, pictures: Tensor | Pictures, indices: Tensor) -> ViewDraws:
        """The draws of all views, [views, N] each, by plain tensors.

        Args:
            pictures: those that are to be drawn from; their sizes count.
            indices: int64 [N], numbers of the pictures.
        """
        views = torch.arange(len(self.recipes), device=indices.device)
        sides = Pictures.of(pictures).places[:, 1:]
        return draw_views(self.table, self.seed, self.epoch, indices, views, sides)

    def __call__(self, pictures: Tensor | Pictures, indices: Tensor, draws: ViewDraws | None = None) -> Tensor:
        """All views of a batch.

        Args:
            pictures: the batch's: uint8 [N, 3, H, W], or N of any sizes.
            indices: int64 [N]: the numbers of these pictures that their draws depend on.
            draws: use these, [views, N], instead of drawing.

        Returns:
            [views, N, 3, S, S] in ``dtype``, each view channels-last.

        Raises:
            TypeError, ValueError: pictures of another dtype or shape.
            IndexError: a picture that ends outside its buffer (on a GPU nothing checks it).
        """
        pictures = Pictures.of(pictures)
        if len(indices) != len(pictures):
            raise ValueError(f"indices must be one number a picture, got {len(indices)} of {len(pictures)}")
        if self.backend == "triton":
            return launch_triton(self, pictures, indices, draws)
        make = call_cpp if self.backend == "cpp" else make_plain
        return make(self, pictures, self.draw(pictures, indices) if draws is None else draws)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """What a channel is multiplied by, and what is added then."""
        pairs = list(zip(self.mean, self.deviation, strict=True))
        return [1 / deviation for _, deviation in pairs], [-mean / deviation for mean, deviation in pairs]


def make_plain(augmentation: Augmentation, pictures: Pictures, draws: ViewDraws) -> Tensor:
    """``Augmentation.__call__`` in plain tensors, checked already, as the next two are."""
    own = (ViewDraws(*(field[view] for field in draws)) for view in range(len(augmentation.recipes)))
    size, blur = augmentation.view_size, augmentation.blur_size
    views = torch.stack([apply_draws(pictures, each, size, blur) for each in own])
    statistics = (augmentation.mean, augmentation.deviation)
    mean, deviation = (torch.tensor(x, device=pictures.device)[:, None, None] for x in statistics)
    views = ((views - mean) / deviation).to(augmentation.dtype)
    return views.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def call_cpp(augmentation: Augmentation, pictures: Pictures, draws: ViewDraws) -> Tensor:
    """The same by csrc/augment.cpp."""
    extension.load()
    out = _room_for_views(augmentation, pictures)
    places = pictures.places.contiguous()
    torch.ops.dogo_fast_cpp.augment(
        pictures.pixels, places, draws.pack(), out, augmentation.blur_size, *augmentation.normalisation()
    )
    return out.permute(0, 1, 4, 2, 3)


def launch_triton(augmentation: Augmentation, pictures: Pictures, indices: Tensor, draws: ViewDraws | None) -> Tensor:
    """The same by kernels/augment.py; without ``draws`` the kernel makes them."""
    from dogo_fast.kernels import augment as kernel

    out = _room_for_views(augmentation, pictures)
    views, N, size = out.shape[:3]
    pixels = size * size
    block = max(32, 1 << (pixels - 1).bit_length()) if pixels <= ONE_TILE else TILE
    scratch = None
    if augmentation.blur_size:
        scratch = torch.empty(views, N, 2, 3, size, size, dtype=torch.float16, device=pictures.device)
    scale, shift = augmentation.normalisation()
    launches.run(
        kernel.augment_kernel,
        (N, views),
        kernel.Pictures(pictures.pixels, pictures.places.contiguous(), indices.contiguous()),
        kernel.DrawSource(augmentation.state, augmentation.table, None if draws is None else draws.pack()),
        scratch,
        out,
        N,
        kernel.Normalisation(*scale, *shift),
        SIZE=size,
        BLUR_SIZE=augmentation.blur_size,
        TURNS=draws is not None or any(recipe.rotation > 0 for recipe in augmentation.recipes),
        BLOCK=block,
        INTERPRETED=interpreting(),
        num_warps=min(16, max(1, block // (PIXELS_A_WARP if pixels <= ONE_TILE else PIXELS_A_WARP_OF_TILES))),
    )
    return out.permute(0, 1, 4, 2, 3)


def _room_for_views(augmentation: Augmentation, pictures: Pictures) -> Tensor:
    """[views, N, S, S, 3]."""
    size = augmentation.view_size
    shape = (len(augmentation.recipes), len(pictures), size, size, 3)
    return torch.empty(shape, dtype=augmentation.dtype, device=pictures.device)
