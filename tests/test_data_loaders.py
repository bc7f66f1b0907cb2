"""The loaders visit every image once an epoch, resume exactly, and go round damaged images."""

import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dogo_fast.data import ImageSource, ResidentLoader, StreamingLoader, batches_in_order, make_loader
from dogo_fast.errors import DamagedImageError, UserError
from dogo_fast.philox import permutation

CPU = torch.device("cpu")


class Numbered(ImageSource):
    """Image n of one pixel holds n in base 256; some are damaged; reading a fatal one kills the process."""

    def __init__(self, count: int, damaged: frozenset[int] = frozenset(), fatal: int | None = None) -> None:
        self.count, self.damaged, self.fatal = count, damaged, fatal
        self.reads = 0

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"image {index}"

    def decode(self, index: int) -> torch.Tensor:
        self.reads += 1
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.damaged:
            raise DamagedImageError(self.name(index), "torn")
        return numbered(torch.tensor([index]))[0]


def numbered(numbers: torch.Tensor) -> torch.Tensor:
    return torch.stack([numbers % 256, numbers // 256, 0 * numbers], dim=1)[:, :, None, None].to(torch.uint8)


def read_out(loader: ResidentLoader | StreamingLoader, *arguments: int, **options: int) -> list[tuple[list[int], int]]:
    """Numbers of the images in every batch, as their pixels tell, and the positions."""
    batches = []
    for batch in loader.epoch(*arguments, **options):
        images = batch.pictures.stack()
        assert images.dtype == torch.uint8 and images.shape == (loader.batch_size, 3, 1, 1)
        numbers = images[:, 0, 0, 0].long() + 256 * images[:, 1, 0, 0].long()
        assert torch.equal(numbers, batch.indices) and batch.indices.dtype == torch.int64
        batches.append((numbers.tolist(), batch.position))
    return batches


def expected_batches(count: int, batch_size: int, order: list[int], damaged: frozenset[int]) -> Any:
    """The rule in plain words: go through the order round and round, pass over damaged ones, fill len() batches."""
    valid = ((entry, order[entry % count]) for entry in itertools.count() if order[entry % count] not in damaged)
    for _ in range(count // batch_size):
        entries = list(itertools.islice(valid, batch_size))
        yield [index for _, index in entries], entries[-1][0] + 1


@st.composite
def epochs(draw: st.DrawFn) -> tuple[int, int, int, frozenset[int]]:
    """Count, batch size, seed and damaged images, at most 1 %; often those first in the order or the last."""
    count = draw(st.integers(100, 600))
    batch_size = draw(st.integers(2, count) | st.sampled_from([2, 3, 7, count // 2, count - 1, count]))
    seed = draw(st.integers(0, 9))
    order = permutation(seed, 5, count).tolist()
    places = st.integers(0, count - 1) | st.sampled_from([0, 1, 2, count - 3, count - 2, count - 1])
    damaged = draw(st.sets(places, max_size=count // 100))
    return count, batch_size, seed, frozenset(order[place] for place in damaged)


@settings(max_examples=150, deadline=None)
@given(epochs(), st.data())
def test_streaming_passes_over_damaged_images_and_resumes_anywhere(
    drawn: tuple[int, int, int, frozenset[int]], data: st.DataObject
):
    count, batch_size, seed, damaged = drawn
    order = permutation(seed, 5, count).tolist()
    expected = list(expected_batches(count, batch_size, order, damaged))
    loader = StreamingLoader(Numbered(count, damaged), batch_size, seed, CPU, workers=0)
    assert read_out(loader, 5) == expected and len(loader) == len(expected) == count // batch_size
    assert loader.damaged.keys() <= damaged
    step = data.draw(st.integers(0, len(expected)))
    position = expected[step - 1][1] if step else 0
    fresh = StreamingLoader(Numbered(count, damaged), batch_size, seed, CPU, workers=0)
    assert read_out(fresh, 5, position) == expected[step:]
    source = Numbered(count, damaged)
    fresh = StreamingLoader(source, batch_size, seed, CPU, workers=0)
    assert read_out(fresh, 5, position, step=step) == expected[step:]
    assert source.reads == (expected[-1][1] if step < len(expected) else position) - position  # and nothing twice


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.data())
def test_resident_loader_visits_the_order_of_philox_and_resumes_anywhere(count: int, data: st.DataObject):
    batch_size = data.draw(st.integers(2, count))
    seed, epoch = data.draw(st.integers(0, 2**62)), data.draw(st.integers(1, 99))
    loader = ResidentLoader(numbered(torch.arange(count)), batch_size, seed)
    order = permutation(seed, epoch, count).tolist()
    batches = read_out(loader, epoch)
    assert batches == list(expected_batches(count, batch_size, order, frozenset()))
    assert len(batches) == len(loader) and loader.image_count == count
    step = data.draw(st.integers(0, len(loader)))
    assert read_out(loader, epoch, step * batch_size) == batches[step:]


def test_resident_batches_are_rows_of_the_one_tensor():
    images = numbered(torch.arange(10))
    batches = list(ResidentLoader(images, 4, 0).epoch(0))
    assert len(batches) == 2 and all(each.pictures.pixels.data_ptr() == images.data_ptr() for each in batches)


def test_loaders_agree_whatever_the_workers_and_over_epochs():
    resident = make_loader(numbered(torch.arange(103)), 8, 7, CPU, 0)
    assert isinstance(resident, ResidentLoader)
    expected = [read_out(resident, epoch) for epoch in (0, 1)]
    assert expected[0] != expected[1]
    for workers in (0, 1, 2):
        loader = make_loader(Numbered(103), 8, 7, CPU, workers)
        assert isinstance(loader, StreamingLoader)
        assert [read_out(loader, epoch) for epoch in (0, 1)] == expected
        loader.close()


def test_workers_pass_over_damaged_images_as_this_process_does():
    damaged = frozenset(permutation(3, 5, 310)[[0, 150, 309]].tolist())
    expected = list(expected_batches(310, 31, permutation(3, 5, 310).tolist(), damaged))
    loader = StreamingLoader(Numbered(310, damaged), 31, 3, CPU, workers=2)
    assert read_out(loader, 5) == expected
    assert expected[-1][1] > 310  # it went on from the start
    assert read_out(loader, 5, expected[3][1]) == expected[4:]
    assert loader.damaged == {index: f"image {index}" for index in damaged}
    loader.close()


def test_an_epoch_left_early_does_not_disturb_the_next():
    loader = StreamingLoader(Numbered(200), 10, 1, CPU, workers=2)
    left = loader.epoch(0)
    next(left)
    assert read_out(loader, 1) == list(expected_batches(200, 10, permutation(1, 1, 200).tolist(), frozenset()))
    with pytest.raises(RuntimeError, match="ended when another was begun"):
        next(left)
    left = loader.epoch(2)
    next(left)
    workers = loader._data_loader._iterator._workers
    loader.close()
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)
    with pytest.raises(RuntimeError, match="or the loader closed"):
        next(left)


class WorkerState(Numbered):
    """Tells in its pixel which process read it and with how many threads."""

    def decode(self, index: int) -> torch.Tensor:
        time.sleep(0.002)
        process = os.getpid()
        values = [process % 256, process // 256 % 256, torch.get_num_threads()]
        return torch.tensor(values, dtype=torch.uint8)[:, None, None]


def test_workers_have_one_thread_and_live_until_the_loader_is_closed():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    loader = StreamingLoader(WorkerState(40), 4, 0, CPU, workers=2)
    try:
        first, second = (torch.cat([batch.pictures.stack() for batch in loader.epoch(epoch)]) for epoch in (0, 1))
    finally:
        torch.set_num_threads(threads)
    assert set(first[:, 2, 0, 0].tolist()) == {1}
    processes = [{tuple(pixel) for pixel in images[:, :2, 0, 0].tolist()} for images in (first, second)]
    assert processes[0] == processes[1] and len(processes[0]) == 2
    workers = loader._data_loader._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


def test_loading_draws_from_no_global_generator():
    state = torch.get_rng_state()
    for images in (numbered(torch.arange(20)), Numbered(20)):
        read_out(make_loader(images, 4, 0, CPU, 0), 0)
    list(batches_in_order(Numbered(20), 6, CPU))
    assert torch.equal(torch.get_rng_state(), state)


def test_each_damaged_image_is_logged_once_and_above_one_percent_the_run_stops(caplog: pytest.LogCaptureFixture):
    loader = StreamingLoader(Numbered(200, frozenset([5, 6])), 10, 0, CPU, workers=0)
    for epoch in range(3):
        read_out(loader, epoch)
    assert sorted(caplog.messages) == [f"skipped a damaged image: image {index} (torn)" for index in (5, 6)]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    loader = StreamingLoader(Numbered(200, frozenset([5, 6, 7])), 10, 0, CPU, workers=0)
    with pytest.raises(UserError, match=r"more than 1 % .*: 3 of 200 so far: image \d, image \d, image \d") as error:
        read_out(loader, 0)
    assert "\n" not in str(error.value)


def test_a_worker_that_is_killed_is_one_clear_error_and_no_hang():
    loader = StreamingLoader(Numbered(60, fatal=int(permutation(0, 1, 60)[35])), 5, 0, CPU, workers=2)
    with pytest.raises(UserError, match=r"a worker process that decodes images died.*fewer `workers`") as error:
        read_out(loader, 1)
    assert "\n" not in str(error.value)


FAILING = """
import resource, sys, torch
from dogo_fast.data import DataSet, ImageSource, residence

class Failing(ImageSource):
    labels = torch.arange(2000) % 2
    def __len__(self): return 2000
    def name(self, index): return str(index)
    def decode(self, index):
        if index == 700 and sys.argv[1] == "memory":
            raise MemoryError
        return torch.zeros(3, 64, 64, dtype=torch.uint8)

if sys.argv[1] == "shared memory":  # as where /dev/shm is small: a file may have 1 MB
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
source = Failing()
residence.settle(DataSet("data", source, source, None, ("a", "b")), 512, "device", 4)
"""


@pytest.mark.parametrize(
    ("what", "reason"), [("memory", r"MemoryError"), ("shared memory", r"RuntimeError: .*shm.*")], ids=["memory", "shm"]
)
def test_a_worker_that_fails_while_all_is_decoded_ends_the_process_with_one_error(what: str, reason: str):
    """The others ignore SIGTERM, and multiprocessing waited for them for ever; what cannot be shared was dropped."""
    command = [sys.executable, "-W", "ignore", "-c", FAILING, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and re.search(
        rf"UserError: a worker process that decodes images died \({reason}\).*fewer `workers`", last
    ), done.stderr[-2000:]


def test_a_worker_that_is_killed_disturbs_nothing_but_the_next_batch():
    loader = StreamingLoader(Numbered(400), 5, 0, CPU, workers=2)
    batches = loader.epoch(0)
    next(batches)
    for worker in loader._data_loader._iterator._workers:
        worker.kill()
        worker.join()
    time.sleep(0.1)  # PyTorch's own handler would raise an error here, wherever the training is
    with pytest.raises(UserError, match="a worker process that decodes images died"):
        list(batches)


def test_a_position_that_is_no_batch_of_the_epoch_is_refused():
    for loader in (ResidentLoader(numbered(torch.arange(20)), 4, 0), StreamingLoader(Numbered(20), 4, 0, CPU, 0)):
        for position, step in ((3, None), (24, None), (-4, None), (8, 1), (8, 3)):
            with pytest.raises(ValueError, match=f"position must be that of a batch of this epoch, got {position}"):
                read_out(loader, 0, position, step=step)
        assert read_out(loader, 0, 20) == []


@pytest.mark.parametrize("batch_size", [1, 17])
@pytest.mark.parametrize("images", [numbered(torch.arange(16)), Numbered(16)])
def test_a_batch_size_that_cannot_be_is_refused(images: Any, batch_size: int):
    with pytest.raises(UserError, match=f"`batch_size` must be from 2 to 16, the number of images, got {batch_size}"):
        make_loader(images, batch_size, 0, CPU, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_order_are_the_same_from_tensors_and_sources(workers: int):
    images = numbered(torch.arange(300))
    for source in (images, Numbered(300)):
        batches, numbers = zip(*batches_in_order(source, 64, CPU, workers), strict=True)
        assert torch.equal(torch.cat(numbers), torch.arange(300))
        assert [len(batch) for batch in batches] == [64, 64, 64, 64, 44]
        assert torch.equal(torch.cat([batch.stack() for batch in batches]), images)


def test_batches_in_order_leave_a_damaged_image_out_and_say_which_are_there():
    batches, numbers = zip(*batches_in_order(Numbered(300, frozenset([70])), 64, CPU), strict=True)
    kept = [number for number in range(300) if number != 70]
    assert torch.cat(numbers).tolist() == kept
    assert torch.equal(torch.cat([batch.stack() for batch in batches]), numbered(torch.arange(300))[kept])
    with pytest.raises(UserError, match="more than 1 % of the images are damaged"):
        list(batches_in_order(Numbered(99, frozenset([70])), 64, CPU))


@pytest.mark.gpu
def test_streaming_to_a_gpu_gives_what_streaming_to_the_cpu_gives():
    damaged = frozenset(permutation(3, 5, 310)[[0, 150, 309]].tolist())
    device = torch.device("cuda")
    expected = list(expected_batches(310, 31, permutation(3, 5, 310).tolist(), damaged))
    loader = StreamingLoader(Numbered(310, damaged), 31, 3, device, workers=2)
    assert read_out(loader, 5) == expected
    assert all(batch.pictures.pixels.is_cuda and batch.indices.is_cuda for batch in loader.epoch(6))
    loader.close()
    assert torch.equal(
        torch.cat([batch.stack() for batch, _ in batches_in_order(Numbered(99), 8, device)]).cpu(),
        numbered(torch.arange(99)),
    )
