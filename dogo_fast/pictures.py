"""Pictures of any sizes in one buffer of bytes, of which views are drawn: of the whole, at its own resolution."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures, each uint8 [3, height, width].

    Attributes:
        pixels: uint8 [bytes], one picture after the other.
        places: int64 [N, 3]: the byte at which a picture begins, its height and its width, pixels.
    """

    pixels: Tensor
    places: Tensor

    @staticmethod
    def of(pictures: "Tensor | Pictures | Sequence[Tensor]") -> "Pictures":
        """Of uint8 [N, 3, H, W], whose bytes are not copied if they are contiguous; or of N of [3, H, W].

        Raises:
            TypeError, ValueError: anything else.
        """
        if isinstance(pictures, Pictures):
            return pictures
        for each in [pictures] if isinstance(pictures, Tensor) else pictures:
            _check(each, 4 if isinstance(pictures, Tensor) else 3)
        if isinstance(pictures, Tensor):
            count, _, height, width = pictures.shape
            places = torch.empty(count, 3, dtype=torch.int64, device=pictures.device)
            places[:, 0] = torch.arange(count, device=pictures.device) * (3 * height * width)
            places[:, 1], places[:, 2] = height, width
            return Pictures(pictures.contiguous().view(-1), places)
        pixels = torch.cat([each.reshape(-1) for each in pictures]) if pictures else torch.empty(0, dtype=torch.uint8)
        sides = torch.tensor([each.shape[1:] for each in pictures], dtype=torch.int64).view(-1, 2)
        return Pictures(pixels, _one_after_the_other(sides).to(pixels.device))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        """A picture [3, H, W], without a copy. On a GPU this waits for the device."""
        begin, height, width = self.places[index].tolist()
        return self.pixels[begin : begin + 3 * height * width].view(3, height, width)

    def each(self) -> list[Tensor]:
        """All of them [3, H, W], without copies. On a GPU this waits for the device, once."""
        return [
            self.pixels[begin : begin + 3 * height * width].view(3, height, width)
            for begin, height, width in self.places.tolist()
        ]

    def stack(self) -> Tensor | None:
        """uint8 [N, 3, H, W], or None where the sizes differ or there are none."""
        if not len(self) or not bool((self.places[:, 1:] == self.places[0, 1:]).all()):
            return None
        height, width = self.places[0, 1:].tolist()
        numbers = torch.arange(3 * height * width, device=self.device)
        return self.pixels[self.places[:, :1] + numbers].view(-1, 3, height, width)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def select(self, rows: Tensor) -> "Pictures":
        """Some of them, rows int64 [B], in the same buffer."""
        return Pictures(self.pixels, self.places[rows])

    def part(self, start: int, stop: int) -> "Pictures":
        """Those from start to stop - 1 with their bytes alone, without a copy; they must lie one after the other."""
        if start == 0 and stop >= len(self):
            return self
        places = self.places[start:stop].clone()
        if not len(places):
            return Pictures(self.pixels[:0], places)
        first, (begin, height, width) = int(places[0, 0]), places[-1].tolist()
        end = begin + 3 * height * width
        places[:, 0] -= first
        return Pictures(self.pixels[first:end], places)

    def to(self, device: torch.device) -> "Pictures":
        return Pictures(self.pixels.to(device), self.places.to(device))

    def pin_memory(self) -> "Pictures":
        return Pictures(self.pixels.pin_memory(), self.places.pin_memory())

    def seen_from(self, anchor: Tensor) -> "Pictures":
        """The same bytes, counted from the first of ``anchor``: a CUDA graph that was captured with this anchor reads
        them wherever they lie, for as long as this object's pixels live."""
        places = self.places.clone()
        places[:, 0] += self.pixels.data_ptr() - anchor.data_ptr()
        return Pictures(anchor, places)


def join(parts: Sequence[Pictures], pinned: bool = False) -> Pictures:
    """All pictures of the parts, each of which has the bytes of its own alone."""
    if len(parts) == 1:
        return parts[0]
    sizes = [part.pixels.numel() for part in parts]
    pixels = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
    torch.cat([part.pixels for part in parts], out=pixels)
    return Pictures(pixels, _one_after_the_other(torch.cat([part.places[:, 1:] for part in parts])))


def _one_after_the_other(sides: Tensor) -> Tensor:
    """Places of pictures of these heights and widths int64 [N, 2]."""
    ends = (3 * sides.prod(dim=1)).cumsum(0)
    return torch.cat([(ends - 3 * sides.prod(dim=1))[:, None], sides], dim=1)


def _check(pictures: Tensor, dimensions: int) -> None:
    if pictures.dtype != torch.uint8:
        raise TypeError(f"pictures must be uint8, got {pictures.dtype}")
    if pictures.dim() != dimensions or pictures.shape[-3] != 3 or not pictures.shape[-2:].numel():
        shape = "[N, 3, H, W]" if dimensions == 4 else "[3, H, W]"
        raise ValueError(f"pictures must be {shape}, got {tuple(pictures.shape)}")
