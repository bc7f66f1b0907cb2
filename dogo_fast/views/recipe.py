"""What is changed at random in a view, and how strongly; the recipes that are known by name."""

import math
from dataclasses import dataclass, fields

BLUR_SHARE = 0.1
"""The blur's width as a share of the view's side (SimCLR, appendix A)."""


@dataclass(frozen=True)
class ViewRecipe:
    """How strong each random change is; the defaults change nothing.

    Args:
        crop_area: smallest and largest share of the image's area that a crop keeps, uniform.
        crop_ratio: smallest and largest width/height of a crop, log-uniform.
        flip: probability of a horizontal flip.
        rotation: largest angle to either side, degrees; done within the crop, whose border pixels repeat outwards.
        jitter: probability of the colour jitter.
        brightness, contrast, saturation: factors are uniform in [max(0, 1 − x), 1 + x].
        hue: shifts are uniform in [−x, x] turns of the colour circle.
        grayscale: probability of greying.
        blur: probability of the Gaussian blur, whose width is a tenth of the view's side.
        blur_deviation: smallest and largest standard deviation of the blur, pixels, uniform.
        solarise: probability of inverting what is brighter than ½.

    Raises:
        ValueError: a probability, range or strength that is not possible; the message names it.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rotation: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_deviation: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        highest = {"rotation": 180.0, "brightness": 10.0, "contrast": 10.0, "saturation": 10.0, "hue": 0.5}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                most = 1.0 if field.name == "crop_area" else 100.0
                if not (len(value) == 2 and 0 < value[0] <= value[1] <= most):
                    raise ValueError(
                        f"{field.name} must be two numbers, 0 < smallest <= largest <= {most:g}, got {value}"
                    )
            elif not 0 <= value <= highest.get(field.name, 1.0):
                most = highest.get(field.name, 1.0)
                raise ValueError(f"{field.name} must be from 0 to {most:g}, got {value}")

    def numbers(self) -> list[float]:
        """What the kernel reads: bounds of every uniform draw, and the probabilities."""
        angle = math.radians(self.rotation)
        factors = [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        return [
            *(*self.crop_area, *self.crop_ratio, self.flip, -angle, angle, self.jitter),
            *(bound for pair in factors for bound in pair),
            *(-self.hue, self.hue, self.grayscale, self.blur, *self.blur_deviation, self.solarise),
        ]


_NATURAL_CROP = {"crop_area": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "flip": 0.5}
_CIFAR_COLOUR = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2}
_SIMCLR_COLOUR = {"jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "grayscale": 0.2}

VIEW_RECIPES = {
    "none": ViewRecipe(),
    "digits": ViewRecipe((0.5, 1.0), (3 / 4, 4 / 3), rotation=15.0, jitter=0.8, brightness=0.4, contrast=0.4),
    "cifar": ViewRecipe(**_NATURAL_CROP, **_CIFAR_COLOUR),  # type: ignore[arg-type]
    "simclr": ViewRecipe(**_NATURAL_CROP, **_SIMCLR_COLOUR, blur=0.5),  # type: ignore[arg-type]
    "simclr-solarise": ViewRecipe(**_NATURAL_CROP, **_SIMCLR_COLOUR, blur=0.5, solarise=0.2),  # type: ignore[arg-type]
}
"""By name. ``cifar`` and ``simclr`` are SimCLR's for CIFAR-10 (strength ½, no blur) and for ImageNet (strength 1)."""


def blur_size(view_size: int) -> int:
    """Taps of the blur, odd: a tenth of the side, at least 3."""
    return max(3, int(BLUR_SHARE * view_size) // 2 * 2 + 1)
