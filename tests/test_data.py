"""Data sets hold the right pixels and labels, damaged files are named, the loader shuffles without loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as load_sklearn_digits

from dogo_fast.data import DataSet, Loader, cifar10, load_data_set
from dogo_fast.errors import UserError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_digits_are_all_there_once_and_split_by_class():
    data = load_data_set("digits")
    assert (len(data.train), len(data.test), data.image_size) == (1437, 360, 8)
    images = torch.cat([data.train.images, data.test.images])
    labels = torch.cat([data.train.labels, data.test.labels])
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    ours = sorted(zip(images[:, 0].flatten(1).tolist(), labels.tolist(), strict=True))
    values, their_labels = load_sklearn_digits(return_X_y=True)
    theirs = np.round(values * 255 / 16).astype(int).tolist()
    assert ours == sorted(zip(theirs, their_labels.tolist(), strict=True))
    shares = data.test.labels.bincount() / torch.from_numpy(their_labels).bincount()
    assert torch.allclose(shares, torch.full((10,), 360 / 1797), atol=0.005)
    again = load_data_set("digits")
    assert torch.equal(again.train.images, data.train.images) and torch.equal(again.test.labels, data.test.labels)


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six files of 4 records: label (file + record) mod 10; channel c, row y, column x holds file + 40·c + 2·y + x."""
    monkeypatch.setattr(cifar10, "RECORDS", 4)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    channel, row, column = np.ogrid[:3, :32, :32]
    for number, name in enumerate((*cifar10.TRAIN_FILES, cifar10.TEST_FILE)):
        image = (number + 40 * channel + 2 * row + column).astype(np.uint8).tobytes()
        (folder / name).write_bytes(b"".join(bytes([(number + record) % 10]) + image for record in range(4)))
    return folder


@pytest.mark.parametrize("inside", [False, True])
def test_cifar10_reads_planes_rows_and_labels_of_every_file(cifar_folder: Path, inside: bool):
    data = load_data_set("cifar10", cifar_folder if inside else cifar_folder.parent)
    assert isinstance(data, DataSet) and list(data.class_names) == NAMES
    assert (tuple(data.train.images.shape), tuple(data.test.images.shape)) == ((20, 3, 32, 32), (4, 3, 32, 32))
    assert data.train.images[9, 2, 5, 7] == 2 + 80 + 10 + 7  # third file, blue
    assert data.test.images[3, 1, 31, 30] == 5 + 40 + 62 + 30
    assert data.train.labels.tolist() == [(number + record) % 10 for number in range(5) for record in range(4)]
    assert data.test.labels.tolist() == [5, 6, 7, 8]


def test_cifar10_names_a_truncated_file_with_its_published_size(tmp_path: Path):
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES))
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(30_729_999))
    with pytest.raises(UserError, match=r"data_batch_1\.bin.*expected 30730000 bytes.*got 30729999.*cs\.toronto\.edu"):
        load_data_set("cifar10", tmp_path)


def test_cifar10_names_a_missing_file(cifar_folder: Path):
    (cifar_folder / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"test_batch\.bin is missing.*cs\.toronto\.edu/~kriz/cifar\.html"):
        load_data_set("cifar10", cifar_folder)


def test_cifar10_names_a_label_beyond_9(cifar_folder: Path):
    file = cifar_folder / "data_batch_3.bin"
    content = bytearray(file.read_bytes())
    content[2 * 3073] = 10
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"data_batch_3\.bin.*labels from 0 to 9, got 10 in record 2"):
        load_data_set("cifar10", cifar_folder)


def test_cifar10_names_a_damaged_list_of_classes(cifar_folder: Path):
    (cifar_folder / "batches.meta.txt").write_text("airplane\n")
    with pytest.raises(UserError, match=r"batches\.meta\.txt.*expected 10 class names, got 1"):
        load_data_set("cifar10", cifar_folder)


@pytest.mark.parametrize(
    ("name", "directory", "message"),
    [
        ("cifar10", None, "--data-dir is required"),
        ("cifar10", Path("/nowhere/at/all"), "--data-dir must be an existing folder, got /nowhere/at/all"),
        ("digits", Path("."), "--data-dir must not be given"),
        ("imagenet", None, "--data must be one of digits, cifar10, got 'imagenet'"),
    ],
)
def test_wrong_choice_of_data_is_one_clear_line(name: str, directory: Path | None, message: str):
    with pytest.raises(UserError, match=message) as error:
        load_data_set(name, directory)
    assert "\n" not in str(error.value)


def numbered_images(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 2, 2).contiguous()


def test_loader_visits_images_at_most_once_an_epoch_and_drops_the_incomplete_batch():
    loader = Loader(numbered_images(23), 5, torch.Generator().manual_seed(3))
    epochs = [torch.cat(list(loader))[:, 0, 0, 0].tolist() for _ in range(2)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 20 == 5 * len(loader)
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1]


def test_loader_order_follows_the_seed():
    def orders(seed: int) -> list[int]:
        loader = Loader(numbered_images(16), 4, torch.Generator().manual_seed(seed))
        return torch.cat([*loader, *loader])[:, 0, 0, 0].tolist()

    assert orders(1) == orders(1) != orders(2)


@pytest.mark.parametrize("batch_size", [1, 17])
def test_loader_refuses_a_batch_that_cannot_be(batch_size: int):
    with pytest.raises(UserError, match=f"--batch-size must be from 2 to 16.*got {batch_size}"):
        Loader(numbered_images(16), batch_size, torch.Generator())
