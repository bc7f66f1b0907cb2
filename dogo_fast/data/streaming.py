"""The loader of a data set that is too large for the device: decoded in workers, copied one batch ahead."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from dogo_fast.data.decoding import (
    MOST_DAMAGED,
    DamageLog,
    chunk_loader,
    copy_ahead,
    end_loader,
    explain_dead_workers,
    run_loader,
)
from dogo_fast.data.loader import Batch, check_batch_size
from dogo_fast.data.source import ImageSource
from dogo_fast.errors import UserError
from dogo_fast.philox import permutation
from dogo_fast.pictures import Pictures, join

LOG = logging.getLogger("dogo_fast")


class _Tasks:
    """The numbers of the images to decode, a list a task. The DataLoader, made once, asks anew each time it is run."""

    def __init__(self) -> None:
        self.parts: list[range] = []
        self.order = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order
        return (order[torch.arange(part.start, part.stop) % len(order)].tolist() for part in self.parts)


class StreamingLoader:
    """Each epoch visits the images of a source once in a new random order, the last incomplete batch dropped.

    The place of a damaged image is taken by the next one in the order. Where the order ends early because of them it
    goes on from its start, so that every epoch has ``len()`` batches of ``batch_size`` images.

    Args:
        source: images to decode.
        batch_size: images a batch, from 2 to N.
        seed: the order of an epoch is ``permutation(seed, epoch, N)``, whatever the device and the workers.
        device: where the batches are wanted.
        workers: processes that decode, of one thread each; they live until ``close``. 0 decodes in this process.

    Raises:
        UserError: a batch size below 2 or above N; while iterating: more than 1 % of the images are damaged, or a
            worker died.
    """

    def __init__(self, source: ImageSource, batch_size: int, seed: int, device: torch.device, workers: int = 2) -> None:
        check_batch_size(batch_size, len(source))
        self.source = source
        self.batch_size = batch_size
        self.image_count = len(source)
        self.seed = seed
        self.device = device
        self._damage = DamageLog(len(source))
        self._tasks = _Tasks()
        self._data_loader = chunk_loader(source, self._tasks, workers, device, persistent=True)
        self._turn = 0

    @property
    def damaged(self) -> dict[int, str]:
        """Numbers of the damaged images met so far, and their names."""
        return self._damage.damaged

    def __len__(self) -> int:
        return self.image_count // self.batch_size

    def epoch(self, epoch: int, position: int = 0, step: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch, or those that are left of it. Beginning another ends this one.

        Args:
            epoch: number of the epoch, which its order depends on.
            position: of the last batch used; 0 for none.
            step: how many batches were used up to there. Without it, it follows from ``position`` where that is
                unambiguous; else all images before it are read again, to count the damaged.

        Raises:
            ValueError: ``position`` is not that of a batch of this epoch.
        """
        try:
            yield from explain_dead_workers(self._run(epoch, position, step))
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """End the workers and the epoch under way. A further epoch starts new ones."""
        self._turn += 1
        running = self._data_loader._iterator
        if running is not None:
            end_loader(running)
            self._data_loader._iterator = None

    def _run(self, epoch: int, position: int, step: int | None) -> Iterator[Batch]:
        self._turn += 1
        order = permutation(self.seed, epoch, self.image_count)
        steps = len(self) - self._find_step(order, position, step)
        positions: list[int] = []  # of the batches that are being copied

        def assemble() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for pictures, entries in self._batches(order, position, steps * self.batch_size):
                positions.append(int(entries[-1]) + 1)
                yield pictures.pixels, pictures.places, order[entries % self.image_count]

        for pixels, places, indices in copy_ahead(assemble(), self.device):
            yield Batch(Pictures(pixels, places), indices, positions.pop(0))

    def _batches(self, order: Tensor, entry: int, missing: int) -> Iterator[tuple[Pictures, Tensor]]:
        """``missing`` valid images in batches, from an entry of the order on, and the entries int64 [B] they are."""
        pieces: list[tuple[Pictures, Tensor]] = []
        room = self.batch_size
        while missing:
            stop = entry + missing
            for pictures, entries in self._decode(order, entry, stop):
                missing -= len(pictures)
                while len(pictures):
                    taken = min(room, len(pictures))
                    pieces.append((pictures.part(0, taken), entries[:taken]))
                    pictures, entries = pictures.part(taken, len(pictures)), entries[taken:]
                    room -= taken
                    if not room:
                        whole = join([part for part, _ in pieces], pinned=self.device.type == "cuda")
                        yield whole, torch.cat([part for _, part in pieces])
                        pieces, room = [], self.batch_size
            entry = stop  # what is missing now makes up for the damaged ones

    def _decode(self, order: Tensor, start: int, stop: int) -> Iterator[tuple[Pictures, Tensor]]:
        """The valid images among some entries of the order, which begins again after its end, and their entries."""
        number = self._turn
        parts = [range(first, min(first + self.batch_size, stop)) for first in range(start, stop, self.batch_size)]
        self._tasks.parts, self._tasks.order = parts, order
        for part, chunk in zip(parts, run_loader(self._data_loader), strict=True):
            for place, name, reason in chunk.damaged:
                self._damage.record(int(order[(part.start + place) % self.image_count]), name, reason)
            yield chunk.pictures, part.start + chunk.valid
            if number != self._turn:
                raise RuntimeError("this epoch of the loader ended when another was begun or the loader closed")

    def _find_step(self, order: Tensor, position: int, step: int | None) -> int:
        """How many batches end at ``position``."""
        # images that are damaged come up at most once a round
        most = MOST_DAMAGED * self.image_count // 100 * -(-position // self.image_count)
        possible = [steps for steps in range(len(self) + 1) if 0 <= position - steps * self.batch_size <= most]
        if step is not None:
            possible = [step] if step in possible else []
        if len(possible) > 1:
            LOG.info("reading %d images again to find out how many were damaged", position)
            valid = sum(len(pictures) for pictures, _ in self._decode(order, 0, position))
            possible = [steps for steps in possible if steps * self.batch_size == valid]
        if len(possible) != 1:
            raise ValueError(f"position must be that of a batch of this epoch, got {position} (step {step})")
        return possible[0]
