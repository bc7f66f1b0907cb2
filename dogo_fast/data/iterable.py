"""Data sets that can only be iterated (webdataset, Hugging Face's streaming): a buffer shuffles, threads decode."""

import logging
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dogo_fast.data.decoding import DamageLog, copy_ahead
from dogo_fast.data.loader import Batch, check_batch_size
from dogo_fast.data.pixels import decode, shrink
from dogo_fast.data.source import DECODE_SIZE, IMAGE_KEYS, find_key
from dogo_fast.errors import UserError
from dogo_fast.philox import derive_seed
from dogo_fast.pictures import Pictures

LOG = logging.getLogger("dogo_fast")
BUFFER = 1000


class IterableSource:
    """The adapter for any data set that can be iterated, over and over; its labels are not read.

    Args:
        data_set: its items are images, tuples that begin with one, or dictionaries; images as ``MapSource`` takes them.
        count: images an epoch, which the schedule needs to know. What a run over the data set has more comes in none
            of them; where it has fewer, the next run begins.
        image_key: of the image in a dictionary; found if it has a usual name.
        buffer: items, as they come, out of which the next one is drawn at random.
        decode_size: the shorter side that larger images are shrunk to, pixels.

    Each epoch is a run of its own, after ``data_set.set_epoch(epoch)`` if there is such a method. To go on within one,
    the items before are read again, not decoded: the images are the same if the data set gives them in the same order
    each time it is iterated in an epoch.

    Raises:
        UserError: a count or a buffer below 1, an iterator, which could be run once only, or no key of an image.
    """

    def __init__(
        self,
        data_set: Iterable[Any],
        count: int,
        *,
        image_key: str | None = None,
        buffer: int = BUFFER,
        decode_size: int = DECODE_SIZE,
    ) -> None:
        if count < 1 or buffer < 1:
            raise UserError(f"count and buffer must be at least 1, got {count} and {buffer}")
        if isinstance(data_set, Iterator):
            raise UserError(
                f"data_set must be one that can be iterated again, got an iterator, {type(data_set).__name__}"
            )
        self.data_set, self.count, self.buffer, self.decode_size = data_set, count, buffer, decode_size
        first = next(iter(data_set), None)
        if first is None:
            raise UserError("data_set must have items, got an empty one")
        keys = [str(key) for key in first] if isinstance(first, Mapping) else []
        self.image_key = find_key(keys, image_key, IMAGE_KEYS, "image") if keys else None

    def __len__(self) -> int:
        return self.count

    def read(self, item: Any) -> Tensor:
        """The whole image of an item, uint8 [3, H, W]. Raises anything if it cannot be decoded."""
        if isinstance(item, Mapping) and self.image_key is not None:
            item = item[self.image_key]
        elif isinstance(item, tuple | list):
            item = item[0]
        return shrink(decode(item), self.decode_size)

    def sample(self, count: int) -> Iterator[Tensor]:
        """The first images that can be decoded, of so many."""
        for item in islice(self.data_set, count):
            try:
                yield self.read(item)
            except Exception:  # damaged: it is named when it is trained on
                continue

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[int, Any]]:
        """Items and their numbers without end, each once a run, drawn from the buffer; the order depends on seed and
        epoch."""
        if hasattr(self.data_set, "set_epoch"):
            self.data_set.set_epoch(epoch)
        draws = random.Random(derive_seed(seed, f"buffer {epoch}"))
        number = 0
        while True:
            begun, waiting = number, []
            for item in self.data_set:
                waiting.append((number, item))
                number += 1
                if len(waiting) > self.buffer:
                    place = draws.randrange(len(waiting))
                    waiting[place], waiting[-1] = waiting[-1], waiting[place]
                    yield waiting.pop()
            draws.shuffle(waiting)
            yield from waiting
            if number == begun:
                raise UserError("data_set must have items, got an empty one")


class IterableLoader:
    """Batches of an ``IterableSource``, decoded in threads one batch ahead.

    Args:
        source: what to read.
        batch_size: images a batch, from 2 to ``len(source)``.
        seed: the order of an epoch depends on it, and on the epoch.
        device: where the batches are wanted.
        workers: threads.

    Raises:
        UserError: a batch size out of range; while iterating: more than 1 % of the images are damaged.
    """

    def __init__(self, source: IterableSource, batch_size: int, seed: int, device: torch.device, workers: int) -> None:
        check_batch_size(batch_size, len(source))
        self.source, self.batch_size, self.seed, self.device = source, batch_size, seed, device
        self.workers = max(1, workers)
        self.image_count = len(source)
        self._damage = DamageLog(len(source))

    @property
    def damaged(self) -> dict[int, str]:
        """Numbers of the damaged images met so far, and what they are called."""
        return self._damage.damaged

    def __len__(self) -> int:
        return self.image_count // self.batch_size

    def epoch(self, epoch: int, position: int = 0, step: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch, or those that are left of it after ``position`` items and ``step`` batches.

        Raises:
            ValueError: ``position`` is not that of a batch.
        """
        done = position // self.batch_size if step is None else step
        if not 0 <= done <= len(self) or position < done * self.batch_size:
            raise ValueError(f"position must be that of a batch of this epoch, got {position} (step {step})")
        if position:
            LOG.info("reading %d items again, to go on after them", position)
        positions: list[int] = []

        def assemble() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for pictures, numbers, reached in self._batches(epoch, position, len(self) - done):
                positions.append(reached)
                yield pictures.pixels, pictures.places, numbers

        for pixels, places, numbers in copy_ahead(assemble(), self.device):
            yield Batch(Pictures(pixels, places), numbers, positions.pop(0))

    def _batches(self, epoch: int, position: int, count: int) -> Iterator[tuple[Pictures, Tensor, int]]:
        """Pictures, their numbers, and how many items were read by then."""
        items = islice(enumerate(self.source.shuffled(self.seed, epoch), 1), position, None)
        with ThreadPoolExecutor(self.workers) as threads:
            ahead: deque[tuple[int, int, Future[Tensor]]] = deque()

            def fill() -> None:
                while len(ahead) < 2 * self.batch_size:
                    reached, (number, item) = next(items)
                    ahead.append((reached, number, threads.submit(self.source.read, item)))

            try:
                for _ in range(count):
                    images: list[Tensor] = []
                    numbers: list[int] = []
                    while len(images) < self.batch_size:
                        fill()
                        reached, number, future = ahead.popleft()
                        try:
                            images.append(future.result())
                            numbers.append(number)
                        except Exception as error:  # decoders raise errors of every kind on damaged bytes
                            reason = " ".join(f"{type(error).__name__}: {error}".split())
                            self._damage.record(number, f"item {number}", reason)
                    pictures = Pictures.of(images)
                    yield (
                        pictures.pin_memory() if self.device.type == "cuda" else pictures,
                        torch.tensor(numbers),
                        reached,
                    )
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Nothing to end; there for its likeness to ``StreamingLoader``."""
