"""Decoding the images of a source, in worker processes or here, and keeping account of the damaged ones."""

import atexit
import logging
import re
import signal
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dogo_fast.data.source import ImageSource
from dogo_fast.errors import DamagedImageError, UserError
from dogo_fast.pictures import Pictures
from dogo_fast.private import end_workers, forget_workers

LOG = logging.getLogger("dogo_fast")
CHUNK = 128
MOST_DAMAGED = 1
"""The percentage of damaged images above which a run stops."""
NAMED = 3
"""Damaged images named in the error."""
LEFT_TO_MAIN = frozenset({signal.SIGINT, signal.SIGTERM})
DEAD_WORKER = r"DataLoader worker \(pid|Pin memory thread exited|in DataLoader worker process|in pin memory thread"
"""In the messages of PyTorch's errors: it died, or raised."""
RUNNING: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Iterators with workers, to be ended when this process does: multiprocessing would wait for ever for those that ignore
the SIGTERM that it sends."""
Item = TypeVar("Item")


class Chunk(NamedTuple):
    """What became of the images of one task."""

    pictures: Pictures
    """The V valid ones."""
    valid: Tensor
    """int64 [V], their places in the task."""
    damaged: list[tuple[int, str, str]]
    """Of the others place, name and reason."""


class DamageLog:
    """The damaged images of a source of ``count``: each is logged once; above 1 % it raises UserError."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.damaged: dict[int, str] = {}

    def record(self, index: int, name: str, reason: str) -> None:
        if index in self.damaged:
            return
        self.damaged[index] = name
        LOG.warning("skipped a damaged image: %s (%s)", name, reason)
        if 100 * len(self.damaged) > MOST_DAMAGED * self.count:
            names = ", ".join(list(self.damaged.values())[:NAMED])
            more = ", ..." if len(self.damaged) > NAMED else ""
            raise UserError(
                f"more than {MOST_DAMAGED} % of the images are damaged: {len(self.damaged)} of {self.count} so "
                f"far: {names}{more} (the last because of {reason})"
            )


class _ChunkReader(Dataset[Chunk]):
    """Decodes a chunk at a time for a DataLoader, which gives it the numbers of the images."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitems__(self, indices: list[int]) -> Chunk:
        pictures, valid, damaged = [], [], []
        for place, index in enumerate(indices):
            try:
                pictures.append(self.source.read(index))
                valid.append(place)
            except DamagedImageError as error:
                damaged.append((place, error.name, error.reason))
        chunk = Chunk(Pictures.of(pictures), torch.tensor(valid, dtype=torch.int64), damaged)
        if (
            get_worker_info() is not None
        ):  # here it can fail aloud; the thread that sends would print a traceback, and wait
            for tensor in (chunk.pictures.pixels, chunk.pictures.places, chunk.valid):
                tensor.share_memory_()
        return chunk


def chunk_loader(
    source: ImageSource, tasks: Iterable[list[int]], workers: int, device: torch.device, *, persistent: bool = False
) -> "DataLoader[Any]":
    """A DataLoader of a ``Chunk`` per task, in order: pinned for a GPU, no generator but its own drawn from."""
    return DataLoader(
        _ChunkReader(source),
        batch_sampler=tasks,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=device.type == "cuda",
        persistent_workers=persistent and workers > 0,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # else every epoch would advance PyTorch's global one
    )


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """Ctrl-C and a queue's SIGTERM go to all processes; a worker that died of it would cost the step that is to be
    finished. Workers end with the loader or the main process. Until here the signals were blocked, from the fork on."""
    for number in LEFT_TO_MAIN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_MAIN)


def _unchanged(chunk: Any) -> Any:
    return chunk


def run_loader(loader: "DataLoader[Any]") -> Iterator[Chunk]:
    """One run over a ``chunk_loader``.

    PyTorch would raise an error in whatever the main thread does at the moment in which a worker dies, and again in
    the error's own handling. Here only asking for the next chunk fails, within 5 seconds, and no worker is left.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_MAIN)
    try:
        iterator: Any = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    forget_workers(iterator)
    if not RUNNING:
        atexit.unregister(_end_all)
        atexit.register(_end_all)  # after multiprocessing's, so that it runs before
    RUNNING.add(iterator)
    try:
        yield from iterator
    except GeneratorExit:
        if not loader.persistent_workers:
            end_loader(iterator)
        raise
    except BaseException:
        end_loader(iterator)
        raise


def end_loader(iterator: Any) -> None:
    """Ends the workers of an iterator, now; it may have none."""
    RUNNING.discard(iterator)
    if getattr(iterator, "_workers", None):
        end_workers(iterator)


def _end_all() -> None:
    for iterator in list(RUNNING):
        end_loader(iterator)


def explain_dead_workers(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a worker that died or failed is a UserError instead of what PyTorch or the broken pipe raise."""
    try:
        yield from items
    except UserError:
        raise
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        died = isinstance(error, MemoryError | ConnectionError | EOFError | FileNotFoundError)
        if not died and not re.search(DEAD_WORKER, message):
            raise
        raised = str(error).strip().rpartition("\n")[2]  # of a worker's traceback the last line
        raise UserError(
            f"a worker process that decodes images died ({raised or type(error).__name__}): if it ran out of memory "
            "or of /dev/shm, of which Docker gives 64 MB unless told otherwise (--shm-size), fewer `workers`, smaller "
            "`batch_size` or `decode_size` need less"
        ) from None


def copy_ahead(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The same tensors on ``device``; on a GPU each is copied on a stream of its own while the one before is used."""
    if device.type != "cuda":
        for batch in batches:
            yield tuple(tensor.to(device) for tensor in batch)
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[tuple[Tensor, ...], torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
            event = stream.record_event()
        if ahead is not None:
            yield _take_over(*ahead)
        ahead = copied, event
    if ahead is not None:
        yield _take_over(*ahead)


def _take_over(tensors: tuple[Tensor, ...], event: torch.cuda.Event) -> tuple[Tensor, ...]:
    """Have the current stream wait for the copy, and the memory for the current stream before it is used again."""
    current = torch.cuda.current_stream(tensors[0].device)
    current.wait_event(event)
    for tensor in tensors:
        tensor.record_stream(current)
    return tensors


def decode_all(source: ImageSource, workers: int) -> tuple[Tensor | Pictures, Tensor]:
    """All valid images of a source, uint8 [V, 3, H, W] where all have the same sides, and their numbers int64 [V].

    Raises:
        UserError: more than 1 % are damaged, or a worker died.
    """
    count = len(source)
    pixels, filled = torch.empty(0, dtype=torch.uint8), 0
    places: list[Tensor] = []
    numbers: list[Tensor] = []
    for pictures, which in _decode_in_order(source, CHUNK, torch.device("cpu"), workers):
        more = pictures.pixels.numel()
        if filled + more > pixels.numel():  # by what is to come if it is like what came
            done = max(1, sum(map(len, numbers)) + len(which))
            larger = torch.empty(max(filled + more, (filled + more) * count // done), dtype=torch.uint8)
            larger[:filled] = pixels[:filled]
            pixels = larger
        pixels[filled : filled + more] = pictures.pixels
        places.append(pictures.places + torch.tensor([filled, 0, 0]))
        numbers.append(which)
        filled += more
    all_places = torch.cat(places)
    if len(numbers) and len(torch.cat(numbers)) < count:
        LOG.warning("%d of %d images are damaged and left out", count - len(torch.cat(numbers)), count)
    sides = all_places[:, 1:].unique(dim=0)
    if len(sides) == 1:
        return pixels[:filled].view(-1, 3, *sides[0].tolist()), torch.cat(numbers)
    return Pictures(pixels[:filled], all_places), torch.cat(numbers)


def batches_in_order(
    images: Tensor | Pictures | ImageSource, batch_size: int, device: torch.device, workers: int = 0
) -> Iterator[tuple[Pictures, Tensor]]:
    """All pictures in order on ``device``, the last batch with what is left, and their numbers int64 [B] on the CPU.
    Damaged ones are left out and logged.

    Args:
        images: uint8 [N, 3, H, W], pictures, or a source.
        batch_size: the largest B.
        device: where the batches are wanted.
        workers: processes that decode a source; 0 decodes in this one.

    Raises:
        UserError: more than 1 % are damaged, or a worker died.
    """
    if isinstance(images, ImageSource):
        yield from _decode_in_order(images, batch_size, device, workers)
        return
    pictures = Pictures.of(images)
    for numbers in torch.arange(len(pictures)).split(batch_size):
        yield pictures.select(numbers.to(pictures.device)).to(device), numbers


def _decode_in_order(
    source: ImageSource, batch_size: int, device: torch.device, workers: int
) -> Iterator[tuple[Pictures, Tensor]]:
    count = len(source)
    damage = DamageLog(count)
    numbers_of: list[Tensor] = []
    tasks = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    chunks = explain_dead_workers(run_loader(chunk_loader(source, tasks, workers, device)))

    def valid() -> Iterator[tuple[Tensor, ...]]:
        for task, chunk in zip(tasks, chunks, strict=True):
            for place, name, reason in chunk.damaged:
                damage.record(task[place], name, reason)
            numbers_of.append(task[0] + chunk.valid)
            yield chunk.pictures.pixels, chunk.pictures.places

    for pixels, places in copy_ahead(valid(), device):
        yield Pictures(pixels, places), numbers_of.pop(0)
