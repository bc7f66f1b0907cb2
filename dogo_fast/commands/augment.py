"""``dogo-fast augment``: a sheet of views to look at, one row an image, first the image as evaluation sees it, then its
views."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from pydantic import Field

from dogo_fast.commands.options import Options, parse
from dogo_fast.data import DECODE_SIZE, ImageSource, Pictures, load_data_set
from dogo_fast.data.pixels import scored_views
from dogo_fast.errors import DamagedImageError, UserError
from dogo_fast.philox import derive_seed
from dogo_fast.training.building import choose_recipe
from dogo_fast.training.config import CheckedRecipe, Metavar, resolve_device
from dogo_fast.views import Augmentation
from dogo_fast.views.sheet import arrange

VIEWS = 4
"""Two of each of two peers."""


class AugmentConfig(Options):
    """What is on a sheet of views, and where it is saved."""

    out: Annotated[Path, Metavar("FILE")] = Path("views.png")
    """Where to save it; the ending says the format."""
    data: Annotated[str, Metavar("NAME")] = "digits"
    """Data set, as in pretrain."""
    data_dir: Annotated[Path | None, Metavar("DIR")] = None
    """Folder that holds the data set's files."""
    view_size: Annotated[int | None, Metavar("PIXELS")] = Field(None, ge=4, le=4096)
    """As in pretrain."""
    decode_size: Annotated[int, Metavar("PIXELS")] = Field(DECODE_SIZE, ge=4, le=16384)
    """As in pretrain."""
    recipe: CheckedRecipe = "auto"
    """As in pretrain."""
    images: int = Field(8, ge=1, le=1000)
    """How many images, the first of the data set."""
    epochs: int = Field(2, ge=1, le=100)
    """Of how many epochs to show the views: four each."""
    seed: int = Field(0, ge=0, lt=2**63)
    """A run with this seed sees these views."""
    device: Annotated[str, Metavar("auto|cpu|cuda|cuda:N")] = "auto"
    """Where to make them."""


def read(words: Sequence[str], summary: str) -> Callable[[], None]:
    """Saving the sheet, and printing where it is."""
    config = parse("augment", words, AugmentConfig, summary)
    return lambda: print(save_sheet(config))


def save_sheet(config: AugmentConfig) -> str:
    """Make the sheet and write the file; returns a line that says what is where.

    Raises:
        UserError: an option that is not allowed, data that cannot be read, or a file that cannot be written.
    """
    device = resolve_device(config.device)
    data = load_data_set(
        config.data, config.data_dir, view_size=config.view_size, decode_size=config.decode_size, residence="stream"
    )
    count = min(config.images, data.image_count)
    assert isinstance(data.pretraining, ImageSource)
    try:
        images = [data.pretraining.read(index) for index in range(count)]
    except DamagedImageError as error:
        raise UserError(f"`images` must not reach a damaged one, got {count}: {error}") from None
    recipe = choose_recipe(config.recipe, data)
    seed = derive_seed(config.seed, "views")
    try:
        augmentation = Augmentation([recipe] * VIEWS, data.view_size, seed, device=device)
    except ValueError as error:
        raise UserError(str(error)) from None
    indices = torch.arange(count, device=device)
    scored = [scored_views(image[None], data.view_size, bool(data.photographs)) / 255 for image in images]
    columns = [torch.cat(scored)]
    pictures = Pictures.of(images).to(device)
    for epoch in range(1, config.epochs + 1):
        augmentation.epoch.fill_(epoch)
        columns += list(augmentation(pictures, indices))
    picture = arrange(torch.stack([column.cpu() for column in columns], dim=1))
    try:
        Image.fromarray(picture.numpy()).save(config.out)
    except (OSError, ValueError) as error:
        raise UserError(f"`out` must be a picture file that can be written here, got {config.out} ({error})") from None
    views = VIEWS * config.epochs
    return f"{config.out}: {count} images of {data.name}, each with {views} views ({VIEWS} an epoch, two of each peer)"
