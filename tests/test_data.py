"""Data sets hold the right pixels and labels, and damaged or missing files are named."""

import logging
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forms import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits as load_sklearn_digits
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2.functional import resize

from dogo_fast.data import (
    DATA_SETS,
    DataSet,
    FileSource,
    ImageSource,
    Pictures,
    ResidentLoader,
    Split,
    check_data_name,
    cifar10,
    cifar100,
    load_data_set,
    make_loader,
    residence,
    stl10,
    tiny_imagenet,
)
from dogo_fast.errors import UserError
from dogo_fast.views import Augmentation, ViewRecipe

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_digits_are_all_there_once_and_split_by_class():
    data = load_data_set("digits")
    assert (len(data.train), len(data.test), data.view_size) == (1437, 360, 8)
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


def python_version(folder: Path, part: Any, names: list[str], key: str, files: dict[str, slice]) -> None:
    """As published: dictionaries of bytes, pickled; here in the newest protocol, too."""
    folder.mkdir()
    for number, (name, rows) in enumerate(files.items()):
        content = {b"data": part.images[rows].flatten(1).numpy(), key.encode(): part.labels[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=number % 6))


def test_cifar10_in_its_python_version_is_the_binary_one(cifar_folder: Path, tmp_path: Path):
    data = load_data_set("cifar10", cifar_folder)
    folder = tmp_path / "python" / "cifar-10-batches-py"
    folder.parent.mkdir()
    files = {f"data_batch_{number + 1}": slice(4 * number, 4 * number + 4) for number in range(5)}
    python_version(folder, data.train, NAMES, "labels", files)
    content = {b"data": data.test.images.flatten(1).numpy(), b"labels": data.test.labels.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name.encode() for name in NAMES]}, protocol=2))
    for directory in (folder, folder.parent):
        found = load_data_set("cifar10", directory)
        assert torch.equal(found.train.images, data.train.images) and torch.equal(found.test.images, data.test.images)
        assert torch.equal(found.train.labels, data.train.labels) and found.class_names == data.class_names
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": os.system}))
    with pytest.raises(UserError, match=r"test_batch is damaged \(it names posix\.system\)"):
        load_data_set("cifar10", folder)


def test_cifar100_in_its_python_version_has_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar100, "TRAIN_RECORDS", 3)
    monkeypatch.setattr(cifar100, "TEST_RECORDS", 3)
    part = Split(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.tensor([99, 0, 42]))
    folder = tmp_path / "cifar-100-python"
    python_version(folder, part, NAMES, "fine_labels", {"train": slice(0, 3), "test": slice(0, 3)})
    names = {b"fine_label_names": [b"class_%d" % number for number in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    data = load_data_set("cifar100", tmp_path)
    assert torch.equal(data.train.images, part.images) and data.test.labels.tolist() == [99, 0, 42]
    assert data.class_names[42] == "class_42"


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
        ("cifar10", None, "`data_dir` is required"),
        ("cifar10", Path("/nowhere/at/all"), "`data_dir` must be an existing folder, got /nowhere/at/all"),
        ("digits", Path("."), "`data_dir` must not be given"),
        ("cifar100", None, "`data_dir` is required with `data` cifar100.*CIFAR-100 binary version"),
        ("stl10", None, "`data_dir` is required with `data` stl10.*cs.stanford.edu"),
        ("tiny-imagenet", None, "`data_dir` is required with `data` tiny-imagenet.*tiny-imagenet-200.zip"),
        ("folder", None, "`data_dir` is required with `data` folder"),
        ("folder", Path("/nowhere"), "`data_dir` must be an existing folder, got /nowhere"),
        (
            "imagenet",
            None,
            "`data` must be one of digits, cifar10, .*torchvision:NAME, hf:PATH, list:NAME, got 'imagenet'",
        ),
        ("hf:", None, "`data` must be one of .*, got 'hf:'"),
    ],
)
def test_wrong_choice_of_data_is_one_clear_line(name: str, directory: Path | None, message: str):
    with pytest.raises(UserError, match=message) as error:
        load_data_set(name, directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"view_size": 0}, "`view_size` must be at least 1, got 0"),
        ({"decode_size": 0}, "`decode_size` must be at least 1, got 0"),
        ({"residence": "disk"}, "`residence` must be one of auto, device, stream, got 'disk'"),
        ({"workers": -1}, "`workers` must be at least 0, got -1"),
    ],
)
def test_wrong_option_is_one_clear_line(option: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        load_data_set("digits", **option)


def test_names_are_checked_with_what_is_allowed():
    for name in (*DATA_SETS, "torchvision:MNIST", "hf:some/folder"):
        check_data_name(name)
    with pytest.raises(ValueError, match=r"must be one of digits, .*, folder, torchvision:NAME, hf:PATH, list:NAME"):
        check_data_name("torchvision:")


def test_statistics_of_digits_are_those_of_its_training_pixels():
    data = load_data_set("digits")
    pixels = data.train.images.numpy() / 255
    assert data.mean == (round(pixels.mean(), 3),) * 3 and data.deviation == (round(pixels.std(), 3),) * 3


def test_pretraining_images_are_those_of_the_training_split_and_stay_so_on_another_device():
    data = load_data_set("digits")
    assert data.pretraining is data.train.images and data.image_count == 1437
    moved = data.to(torch.device("meta"))
    assert moved.pretraining is moved.train.images and moved.pretraining.device.type == "meta"
    assert {part.device.type for part in (moved.train.labels, moved.test.images, moved.test.labels)} == {"meta"}
    assert (moved.mean, moved.class_names) == (data.mean, data.class_names)


def test_a_resident_data_set_keeps_its_pixels_whatever_the_size_of_the_views():
    data, own = load_data_set("digits", view_size=5), load_data_set("digits")
    assert (data.view_size, own.view_size, data.photographs) == (5, 8, False)
    assert data.pretraining is data.train.images and torch.equal(data.pretraining, own.pretraining)
    shrunk = load_data_set("digits", decode_size=5)
    expected = resize(own.train.images[:50], [5, 5], antialias=True)
    assert torch.equal(shrunk.train.images[:50], expected) and torch.equal(shrunk.train.labels, own.train.labels)


def test_a_resident_data_set_can_be_streamed_all_the_same():
    data, own = load_data_set("digits", residence="stream"), load_data_set("digits")
    assert isinstance(data.pretraining, ImageSource) and data.pretraining is data.train
    assert (data.view_size, data.image_count) == (8, 1437)
    assert torch.equal(data.pretraining.read(7), own.pretraining[7]) and torch.equal(data.test.labels, own.test.labels)


def test_cifar100_reads_fine_labels_after_coarse_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar100, "TRAIN_RECORDS", 3)
    monkeypatch.setattr(cifar100, "TEST_RECORDS", 2)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("".join(f"class_{number}\n" for number in range(100)))
    channel, row, column = np.ogrid[:3, :32, :32]
    image = (40 * channel + 2 * row + column).astype(np.uint8).tobytes()
    for name, fine in (("train.bin", (99, 0, 42)), ("test.bin", (7, 8))):
        (folder / name).write_bytes(b"".join(bytes([19, label]) + image for label in fine))
    data = load_data_set("cifar100", tmp_path)
    assert data.train.labels.tolist() == [99, 0, 42] and data.test.labels.tolist() == [7, 8]
    assert data.pretraining is data.train.images and data.class_names[42] == "class_42"
    assert data.train.images[2, 2, 5, 7] == 80 + 10 + 7 and data.test.images[1, 1, 31, 30] == 40 + 62 + 30
    (folder / "test.bin").write_bytes(bytes([19, 100]) + image + bytes([0, 0]) + image)
    with pytest.raises(UserError, match=r"test\.bin.*labels from 0 to 99, got 100 in record 0.*cs\.toronto\.edu"):
        load_data_set("cifar100", tmp_path)


@pytest.fixture
def stl_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Image n of all: channel c, row y, column x holds n + 60·c + y + x // 4, stored column by column."""
    for name, count in (("UNLABELLED", 5), ("TRAIN", 3), ("TEST", 2), ("CHUNK", 2)):
        monkeypatch.setattr(stl10, name, count)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(NAMES))
    channel, row, column = np.ogrid[:3, :96, :96]
    image = 60 * channel + row + column // 4
    for name, first, count in (("unlabeled", 0, 5), ("train", 5, 3), ("test", 8, 2)):
        images = [
            (number + image).astype(np.uint8).transpose(0, 2, 1).tobytes() for number in range(first, first + count)
        ]
        (folder / f"{name}_X.bin").write_bytes(b"".join(images))
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 4]))
    (folder / "test_y.bin").write_bytes(bytes([2, 3]))
    return folder


def test_stl10_reads_columns_and_pretrains_on_unlabelled_then_training_images(stl_folder: Path):
    data = load_data_set("stl10", stl_folder.parent)
    assert data.pretraining.shape == (8, 3, 96, 96) and data.view_size == 96
    assert data.pretraining[:, 1, 50, 9].tolist() == [number + 60 + 50 + 2 for number in range(8)]
    assert torch.equal(data.train.images, data.pretraining[5:])
    assert data.train.images.untyped_storage().data_ptr() == data.pretraining.untyped_storage().data_ptr()
    assert data.test.images[1, 2, 3, 95] == 9 + 120 + 3 + 23
    assert data.train.labels.tolist() == [0, 9, 3] and data.test.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "unlabeled_X.bin",
            bytes(7),
            r"unlabeled_X\.bin is damaged: expected 138240 bytes \(5 records of 27648\), got 7",
        ),
        ("train_y.bin", bytes([1, 0, 2]), r"train_y\.bin is damaged: expected labels from 1 to 10, got 0 in record 1"),
        ("test_X.bin", None, r"test_X\.bin is missing: download"),
    ],
)
def test_stl10_names_a_damaged_file(stl_folder: Path, name: str, content: bytes | None, message: str):
    (stl_folder / name).unlink()
    if content is not None:
        (stl_folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message + ".*cs.stanford.edu/~acoates/stl10"):
        load_data_set("stl10", stl_folder)


def save(path: Path, value: int, size: tuple[int, int] = (10, 10)) -> None:
    """An image of one colour (value, value, value), width × height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def values(images: torch.Tensor) -> list[int]:
    """The colours of images of one colour each, compressed by JPEG or not."""
    return images.float().mean(dim=(1, 2, 3)).round().int().tolist()


@pytest.fixture
def tiny_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Classes n2, n1 in this order, three training images each, and three to test with."""
    for name, count in (("CLASSES", 2), ("IMAGES_A_CLASS", 3), ("TEST_IMAGES", 3)):
        monkeypatch.setattr(tiny_imagenet, name, count)
    folder = tmp_path / "tiny-imagenet-200"
    for first, name in ((10, "n2"), (20, "n1")):
        for number in range(3):
            save(folder / "train" / name / "images" / f"{name}_{number}.JPEG", first + number, (64, 64))
    for number in range(3):
        save(folder / "val" / "images" / f"val_{number}.JPEG", 30 + number, (64, 64))
    lines = [f"val_{number}.JPEG\t{name}\t0\t0\t9\t9\n" for number, name in ((2, "n2"), (0, "n1"), (1, "n2"))]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("n2\nn1\n")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_tiny_imagenet_reads_its_classes_and_its_list_of_validation_images(tiny_folder: Path, workers: int):
    data = load_data_set("tiny-imagenet", tiny_folder.parent, workers=workers)
    assert data.pretraining is data.train.images and data.pretraining.shape == (6, 3, 64, 64)
    assert values(data.pretraining) == [10, 11, 12, 20, 21, 22] and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert values(data.test.images) == [30, 31, 32] and data.test.labels.tolist() == [1, 0, 0]
    assert data.class_names == ("n2", "n1") and data.mean == (0.485, 0.456, 0.406)


def test_tiny_imagenet_names_what_is_missing(tiny_folder: Path):
    (tiny_folder / "train" / "n1" / "images" / "n1_1.JPEG").unlink()
    with pytest.raises(UserError, match=r"n1/images is incomplete: expected 3 images, got 2; download.*cs231n"):
        load_data_set("tiny-imagenet", tiny_folder)
    (tiny_folder / "wnids.txt").write_text("n2\nn2\n")
    with pytest.raises(UserError, match=r"annotations.*expected a file and a class.*got 'val_0.JPEG.*in line 2"):
        load_data_set("tiny-imagenet", tiny_folder)


def test_folder_of_classes_reads_classes_in_order_of_name_and_the_validation_images(tmp_path: Path):
    save(tmp_path / "train" / "b" / "1.PNG", 3)
    save(tmp_path / "train" / "a" / "deep" / "2.png", 2)
    save(tmp_path / "train" / "a" / "1.bmp", 1)
    save(tmp_path / "train" / "a" / ".hidden.png", 9)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    save(tmp_path / "val" / "b" / "x.png", 4)
    save(tmp_path / "test" / "unlabelled.png", 5)
    data = load_data_set("folder", tmp_path)
    assert data.class_names == ("a", "b") and data.view_size == 10
    assert values(data.train.images) == [1, 2, 3] and data.train.labels.tolist() == [0, 0, 1]
    assert values(data.test.images) == [4] and data.test.labels.tolist() == [1]
    save(tmp_path / "val" / "c" / "x.png", 4)
    with pytest.raises(UserError, match=r"classes in .*val must be among those in .*train, got c"):
        load_data_set("folder", tmp_path)


def test_a_few_images_beside_class_folders_are_left_out_and_said_and_as_many_as_a_class_are_refused(tmp_path: Path):
    for number, name in enumerate(("b/1", "b/2", "a/1", "a/2", "a/3")):
        save(tmp_path / f"{name}.png", number)
    save(tmp_path / "aa.png", 7)
    (tmp_path / "c").mkdir()
    (tmp_path / "readme.md").write_text("no image")
    data = load_data_set("folder", tmp_path)
    assert data.class_names == ("a", "b") and data.train.labels.tolist() == [0, 0, 0, 1, 1] and data.test is None
    assert values(data.pretraining) == [2, 3, 4, 0, 1]
    assert data.notes == (
        f"5 images in {tmp_path}: 2 classes, a, b",
        "1 file of another kind left out: readme.md",
        f"1 folder without images in {tmp_path}: c",
        "1 image beside the class folders left out: aa.png",
    )
    save(tmp_path / "ab.png", 7)
    with pytest.raises(UserError, match=r"got 2 images beside 2 folders of images in .*, of which the smallest has 2"):
        load_data_set("folder", tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/a", "train/b", "val/a", "validation/a"], r"one folder of test images, got val, validation in"),
        (["train/a", "train/b", "Training/a"], r"or one train folder .*, got Training, train in"),
        (["train/a", "train/b", "cats"], r"got train beside cats in"),
        (["val/a", "val/b"], r"one train folder with its test folders alone, got val in"),
        (["cats", "dogs", "Test"], r"got Test beside cats, dogs in"),
        (["cats/train", "cats/test", "dogs/train"], r"got classes that hold them, cats, dogs, in"),
        (["train/a", "train/b", "val/A"], r"the classes in .*val must be among those in .*train, got A"),
    ],
)
def test_a_layout_that_may_mean_several_things_is_refused(tmp_path: Path, folders: list[str], message: str):
    for folder in folders:
        save(tmp_path / folder / "1.png", 1)
        save(tmp_path / folder / "2.png", 1)
    with pytest.raises(UserError, match=message):
        load_data_set("folder", tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "above"),
    [
        ("train2017", "val2017", ""),
        ("train_images", "validation_images", ""),
        ("images-train", "images-test", ""),
        ("train", "val", "ILSVRC/Data/CLS-LOC/"),
        ("Train", "Test", "a/b/"),
    ],
)
def test_splits_of_longer_names_and_further_down_are_no_classes(tmp_path: Path, train: str, test: str, above: str):
    for split, count in ((train, 3), (test, 2)):
        for name in "ab":
            for number in range(count):
                save(tmp_path / f"{above}{split}" / name / f"{number}.png", number)
    if above:
        (tmp_path / "annotations").mkdir()
    data = load_data_set("folder", tmp_path)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test.labels.tolist() == [0, 0, 1, 1]
    assert any("read from" in note for note in data.notes) == bool(above)


def test_a_class_that_is_called_after_a_split_among_others_is_a_class(tmp_path: Path):
    for name in ("train_station", "test tube", "beach"):
        save(tmp_path / name / "1.png", 1)
        save(tmp_path / name / "2.png", 1)
    data = load_data_set("folder", tmp_path)
    assert data.class_names == ("beach", "test tube", "train_station") and data.image_count == 6


@settings(max_examples=examples(40), deadline=None)
@given(data=st.data())
def test_a_layout_that_people_have_is_read_as_what_it_is_and_all_that_is_left_out_is_said(data: st.DataObject):
    """A truth is drawn, written down as one of the usual trees, and read; nothing else may come out of it."""
    train_name = data.draw(st.sampled_from(["train", "Train", "TRAINING", "trn", None]))
    test_name = data.draw(st.sampled_from(["val", "Val", "validation", "VALID", "test", "Testing", "dev", None]))
    names = data.draw(st.lists(st.sampled_from(["a", "b", "Cat", "cat x", "0", "10", "é"]), unique=True, min_size=2))
    labelled, wrapped, strays, empty = (data.draw(st.booleans()) for _ in range(4))
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch) / "data" / "inner" if wrapped and train_name else Path(scratch) / "data"
        root = top / train_name if train_name else top
        count = 0
        expected, expected_test = [], []
        for label, name in enumerate(sorted(names)):
            for number in range(data.draw(st.integers(2, 4))):
                below = data.draw(st.sampled_from(["", "deep/"])) if labelled else ""
                save(root / (f"{name}/{below}{number}.png" if labelled else f"{count}.png"), count % 250)
                expected.append((count % 250, label))
                count += 1
            if train_name and test_name:
                save(top / test_name / name / "x.PNG", 251)
                expected_test.append((251, label))
        (root / ".hidden").mkdir()
        save(root / ".hidden" / "1.png", 9)
        save(root / "__MACOSX" / "1.png", 9)
        if strays and labelled:
            save(root / "stray.png", 9)
        if empty:
            (root / "nothing").mkdir()
        found = load_data_set("folder", Path(scratch) / "data")
        said = " ".join(found.notes)
    assert sorted(values(found.pretraining)) == sorted(value for value, _ in expected)
    assert f"{len(expected)} images in {root}" in said
    if labelled:
        assert sorted(zip(values(found.train.images), found.train.labels.tolist(), strict=True)) == sorted(expected)
        assert found.class_names == tuple(sorted(names)) and ("stray.png" in said) == strays
    else:
        assert found.train is None and found.test is None and "no labels" in said
    if labelled and expected_test:
        assert list(zip(values(found.test.images), found.test.labels.tolist(), strict=True)) == expected_test
        assert f"{len(names)} test images in {top / test_name}" in said
    elif expected_test:
        assert f"{len(names)} images in {top / test_name} left out" in said
    else:
        assert found.test is None
    assert ("nothing" in said) == empty and (f"read from {top}" in said) == (wrapped and train_name is not None)


def test_folder_follows_links_but_not_in_circles(tmp_path: Path):
    save(tmp_path / "elsewhere" / "1.png", 1)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    assert values(load_data_set("folder", tmp_path / "images").pretraining) == [1]


def test_folder_images_of_different_sizes_are_kept_whole_and_their_views_are_224_pixels(tmp_path: Path):
    save(tmp_path / "1.png", 1, (10, 10))
    save(tmp_path / "2.png", 2, (30, 20))
    save(tmp_path / "3.png", 3, (70, 50))
    data = load_data_set("folder", tmp_path, decode_size=25)
    assert (data.view_size, data.photographs, data.image_count) == (224, True, 3)
    assert isinstance(data.pretraining, Pictures)
    assert [tuple(each.shape) for each in data.pretraining.each()] == [(3, 10, 10), (3, 20, 30), (3, 25, 35)]
    assert [int(each.float().mean()) for each in data.pretraining.each()] == [1, 2, 3]
    assert load_data_set("folder", tmp_path, view_size=12).view_size == 12


def test_a_red_object_at_the_edge_of_a_photograph_is_seen_as_often_as_torchvision_shows_it(tmp_path: Path):
    """The middle square of 500 × 375 begins at column 62."""
    photograph = torch.zeros(375, 500, 3, dtype=torch.uint8)
    photograph[:, :50, 0] = 255
    Image.fromarray(photograph.numpy()).save(tmp_path / "1.png")
    Image.fromarray(photograph.numpy()).save(tmp_path / "2.png")
    torch.manual_seed(0)
    transform = RandomResizedCrop(224, scale=(0.08, 1.0))
    theirs = sum(bool(transform(photograph.permute(2, 0, 1))[0].max() > 0) for _ in range(600)) / 600
    augmentation = Augmentation([ViewRecipe((0.08, 1.0), (3 / 4, 4 / 3))], 224, 0)
    for kept in ("device", "stream"):
        data = load_data_set("folder", tmp_path, residence=kept)
        (batch,) = make_loader(data.pretraining, 2, 0, torch.device("cpu"), 0).epoch(0)
        shown = 0
        for epoch in range(75):
            augmentation.epoch.fill_(epoch)
            shown += int((augmentation(batch.pictures, batch.indices)[0, :, 0].amax(dim=(1, 2)) > 0).sum())
        assert abs(shown / 150 - theirs) < 4 * (theirs * (1 - theirs) / 150) ** 0.5, kept


def test_folder_without_images_says_what_it_looked_for(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"`data_dir` must hold images \(\.jpg, .*found none in"):
        load_data_set("folder", tmp_path)


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a folder of two classes with 100 images each, of which the first few are damaged."""

    def make(damaged: int) -> Path:
        for number in range(200):
            save(tmp_path / "ab"[number // 100] / f"{number:03}.png", number, (4, 4))
        for number in range(damaged):
            path = tmp_path / "a" / f"{number:03}.png"
            path.write_bytes(path.read_bytes()[:45])
        return tmp_path

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_left_out_with_their_labels_and_named_in_the_log(
    damaged_folder: Callable[[int], Path], caplog: pytest.LogCaptureFixture, workers: int
):
    with caplog.at_level(logging.WARNING, "dogo_fast"):
        data = load_data_set("folder", damaged_folder(2), workers=workers)
    assert values(data.train.images) == list(range(2, 200)) and data.image_count == 198
    assert data.train.labels.tolist() == [0] * 98 + [1] * 100
    assert "a/000.png" in caplog.messages[0] and "a/001.png" in caplog.messages[1]
    assert "2 of 200 images" in caplog.messages[2]


def test_more_than_one_percent_of_damaged_images_stop_the_run(damaged_folder: Callable[[int], Path]):
    with pytest.raises(UserError, match=r"more than 1 % of the images are damaged: 3 of 200.*a/000\.png.*a/002\.png"):
        load_data_set("folder", damaged_folder(3))


def test_residence_follows_the_decoded_bytes_of_all_splits_or_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("train/a/1", "train/b/1", "val/a/1"):
        save(tmp_path / f"{name}.png", 1)
    total = 3 * 3 * 10 * 10
    monkeypatch.setattr(residence, "RESIDENT_BYTES", total)
    data = load_data_set("folder", tmp_path)
    assert isinstance(data.pretraining, torch.Tensor) and isinstance(data.test, Split)
    monkeypatch.setattr(residence, "RESIDENT_BYTES", total - 1)
    data = load_data_set("folder", tmp_path)
    assert isinstance(data.pretraining, FileSource) and data.pretraining is data.train
    assert isinstance(data.test, FileSource) and data.test.labels.tolist() == [0]
    assert isinstance(load_data_set("folder", tmp_path, residence="device").train, Split)


def numbered_images(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 2, 2).contiguous()


@pytest.mark.parametrize("batch_size", [1, 17])
def test_loader_refuses_a_batch_that_cannot_be(batch_size: int):
    with pytest.raises(UserError, match=f"`batch_size` must be from 2 to 16.*got {batch_size}"):
        ResidentLoader(numbered_images(16), batch_size, 0)
