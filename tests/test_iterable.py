"""Data sets that can only be iterated: every item once a run, resumed exactly, damaged ones passed over."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from forms import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from dogo_fast.data import IterableLoader, IterableSource, make_loader
from dogo_fast.errors import UserError
from dogo_fast.training import Trainer

CPU = torch.device("cpu")


class Stream:
    """Item n: a picture of n + 1 columns that holds n in base 256; ``broken`` ones are no images."""

    def __init__(self, count: int, broken: frozenset[int] = frozenset(), kind: str = "tuple") -> None:
        self.count, self.broken, self.kind = count, broken, kind
        self.epochs: list[int] = []
        self.read = 0

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        for n in range(self.count):
            self.read += 1
            image: Any = torch.tensor([n % 256, n // 256, 0], dtype=torch.uint8)[:, None, None].expand(3, 2, n % 7 + 1)
            image = "broken" if n in self.broken else image
            yield {"tuple": (image, n), "dictionary": {"jpg": image, "cls": n}, "bare": image}[self.kind]


def numbers_of(loader: IterableLoader, *arguments: int) -> list[tuple[list[int], list[int], int]]:
    """What the pixels of each batch say, the numbers, and the position."""
    found = []
    for batch in loader.epoch(*arguments):
        pixels = [int(each[0, 0, 0]) + 256 * int(each[1, 0, 0]) for each in batch.pictures.each()]
        assert [each.shape[2] for each in batch.pictures.each()] == [n % 7 + 1 for n in pixels]
        found.append((pixels, batch.indices.tolist(), batch.position))
    return found


@settings(max_examples=examples(30), deadline=None)
@given(
    count=st.integers(4, 300),
    buffer=st.sampled_from([1, 5, 50, 1000]),
    kind=st.sampled_from(["tuple", "dictionary", "bare"]),
    workers=st.integers(0, 3),
    data=st.data(),
)
def test_every_item_comes_once_a_run_and_an_epoch_resumes_anywhere(
    count: int, buffer: int, kind: str, workers: int, data: st.DataObject
):
    batch_size = data.draw(st.integers(2, count))
    loader = make_loader(IterableSource(Stream(count, kind=kind), count, buffer=buffer), batch_size, 3, CPU, workers)
    assert isinstance(loader, IterableLoader)
    whole = numbers_of(loader, 1)
    assert len(whole) == len(loader) == count // batch_size
    seen = [n for pixels, _, _ in whole for n in pixels]
    assert len(set(seen)) == len(seen) and all(pixels == numbers for pixels, numbers, _ in whole)
    assert buffer < 50 or count < 50 or seen != sorted(seen)
    assert numbers_of(loader, 1) == whole and (count < 20 or buffer == 1 or numbers_of(loader, 2) != whole)
    step = data.draw(st.integers(0, len(whole)))
    assert numbers_of(loader, 1, whole[step - 1][2] if step else 0, step) == whole[step:]


def test_a_run_that_ends_early_is_followed_by_the_next():
    loader = IterableLoader(IterableSource(Stream(10), 25), 5, 0, CPU, 1)
    batches = numbers_of(loader, 0)
    pixels = [n for each, _, _ in batches for n in each]
    assert [sorted(pixels[:10]), sorted(pixels[10:20])] == [list(range(10))] * 2
    assert sorted(n for _, each, _ in batches for n in each)[:20] == list(range(20))  # the draws are new ones


def test_a_damaged_item_is_passed_over_logged_once_and_resumed_past(caplog: pytest.LogCaptureFixture):
    loader = IterableLoader(IterableSource(Stream(200, frozenset([7])), 200, buffer=20), 19, 0, CPU, 2)
    whole = numbers_of(loader, 0)
    assert 7 not in [n for pixels, _, _ in whole for n in pixels] and list(loader.damaged) == [7]
    assert numbers_of(loader, 0, whole[4][2], 5) == whole[5:]
    assert len([each for each in caplog.messages if "skipped a damaged image: item 7" in each]) == 1
    with pytest.raises(UserError, match="more than 1 % of the images are damaged"):
        numbers_of(IterableLoader(IterableSource(Stream(200, frozenset(range(6))), 200), 19, 0, CPU, 2), 0)


def test_what_cannot_be_iterated_again_or_has_no_image_is_refused():
    with pytest.raises(UserError, match="one that can be iterated again, got an iterator, list_iterator"):
        IterableSource(iter([1]), 5)
    with pytest.raises(UserError, match="must have items, got an empty one"):
        IterableSource([], 5)
    with pytest.raises(UserError, match="count and buffer must be at least 1, got 0 and 1000"):
        IterableSource([1], 0)
    with pytest.raises(UserError, match="no key of the data set is an image's: got text"):
        IterableSource([{"text": 1}], 5)


def test_a_trainer_takes_it_tells_each_epoch_and_goes_on_with_the_same_bits():
    stream = Stream(40)
    options = {"epochs": 3, "batch_size": 8, "device": "cpu", "view_size": None}
    del options["view_size"]
    whole, halves = (Trainer(("small", "small"), IterableSource(each, 40), **options) for each in (stream, Stream(40)))
    assert whole.data.view_size == 224 and whole.data.photographs
    whole.fit(until=1)
    assert stream.epochs == [1]
    halves.fit(until=1)
    assert whole.history[0]["loss"] == halves.history[0]["loss"]
    with pytest.raises(TypeError, match=r"got generator: wrap it, dogo_fast\.data\.IterableSource\(data, count\)"):
        Trainer(("small", "small"), (each for each in stream), **options)
