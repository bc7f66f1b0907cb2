"""Images of every kind become the right pixels, and data sets of every kind the same source."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forms import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms.v2.functional import center_crop, resize

from dogo_fast.data import FileSource, MapSource, load_data_set
from dogo_fast.data.pixels import decode, scored_views, shrink
from dogo_fast.errors import DamagedImageError, UserError

RED = (200, 30, 10)


def pixels(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width", "size"), [(20, 31, 16), (31, 20, 16), (40, 40, 8), (9, 7, 12), (8, 8, 8)])
def test_shrinking_resizes_a_longer_shorter_side_as_torchvision_does_and_crops_nothing(
    height: int, width: int, size: int
):
    image = pixels(height, width)
    expected = resize(image, [size], antialias=True) if min(height, width) > size else image
    assert torch.equal(shrink(image, size), expected) and shrink(image, size).is_contiguous()


@pytest.mark.parametrize(("height", "width"), [(300, 450), (375, 250), (224, 224), (60, 200)])
def test_the_scored_view_of_a_photograph_is_torchvisions(height: int, width: int):
    """For ImageNet: Resize(256), CenterCrop(224), on floating-point pixels."""
    image = pixels(height, width).float()
    expected = center_crop(resize(image, [256], antialias=True), [224, 224])
    torch.testing.assert_close(scored_views(image[None].byte(), 224, True)[0], expected, rtol=0, atol=1e-4)


def test_the_scored_view_of_a_square_image_is_all_of_it():
    image = pixels(12, 12)[None]
    assert torch.equal(scored_views(image, 12, False), image.float())
    expected = resize(image.float(), [9, 9], antialias=True)
    torch.testing.assert_close(scored_views(image, 9, False), expected, rtol=0, atol=1e-4)


def pillow_images() -> dict[str, tuple[Image.Image, str, tuple[int, int, int]]]:
    """By mode: an image of one colour, the file to keep it in, and the colour to expect."""
    wide = Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *RED])
    transparent = palette.copy()
    transparent.info["transparency"] = bytes([255, 0])
    return {
        "RGB": (Image.new("RGB", (4, 4), RED), "x.png", RED),
        "L": (Image.new("L", (4, 4), 77), "x.png", (77, 77, 77)),
        "LA": (Image.new("LA", (4, 4), (77, 9)), "x.png", (77, 77, 77)),
        "1": (Image.new("1", (4, 4), 1), "x.png", (255, 255, 255)),
        "P": (palette, "x.png", RED),
        "P with transparency": (transparent, "x.png", RED),
        "RGBA": (Image.new("RGBA", (4, 4), (*RED, 0)), "x.png", RED),
        "CMYK": (Image.new("CMYK", (4, 4), (55, 225, 245, 0)), "x.tif", RED),
        "I;16": (wide, "x.png", (128, 128, 128)),
        "I": (wide.convert("I"), "x.tif", (128, 128, 128)),
    }


@pytest.mark.parametrize("mode", pillow_images())
def test_files_of_every_mode_become_rgb(tmp_path: Path, mode: str):
    image, name, colour = pillow_images()[mode]
    image.save(tmp_path / name)
    read = FileSource([tmp_path / name]).read(0)
    assert read.dtype == torch.uint8 and read.shape == (3, 4, 4)
    assert torch.equal(read, torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 4, 4))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_exif_is_applied(tmp_path: Path, orientation: int, suffix: str):
    """Left above, right above, ... : where a bright corner of a 16 × 8 picture comes to lie, and its sides."""
    stored = torch.zeros(8, 16, 3, dtype=torch.uint8)
    stored[:4, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored.numpy()).save(tmp_path / f"x.{suffix}", exif=exif)
    read = FileSource([tmp_path / f"x.{suffix}"]).read(0)
    sides = (8, 16) if orientation < 5 else (16, 8)
    bottom, right = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    assert read.shape == (3, *sides)
    corners = read[0].view(2, sides[0] // 2, 2, sides[1] // 2).float().mean(dim=(1, 3))
    assert corners[bottom, right] > 245 and corners.sum() < 265


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_truncated_file_is_damaged(tmp_path: Path, suffix: str):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels(32, 32).permute(1, 2, 0).numpy()).save(path)
    source = FileSource([path])
    source.read(0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedImageError, match=f"x.{suffix} is damaged") as error:
        source.read(0)
    copy = pickle.loads(pickle.dumps(error.value))
    assert (copy.name, copy.reason) == (str(path), error.value.reason) and "\n" not in copy.reason


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_file_that_is_no_image_or_not_there_is_damaged(tmp_path: Path, content: bytes | None):
    path = tmp_path / "ü x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedImageError, match=r"ü x\.jpg"):
        FileSource([tmp_path / "other", path]).read(1)


def test_file_source_survives_pickling_with_names_and_labels():
    source = pickle.loads(pickle.dumps(FileSource(["/a/1.png", Path("/b/é.png"), ""], torch.tensor([3, 4, 5]))))
    assert len(source) == 3 and [source.name(index) for index in range(3)] == ["/a/1.png", "/b/é.png", ""]
    assert source.labels.tolist() == [3, 4, 5]


IMAGE = pixels(5, 6)
HWC = IMAGE.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(HWC), IMAGE),
        (HWC, IMAGE),
        (HWC[..., 0], IMAGE[:1].expand(3, -1, -1)),
        (HWC[..., :1], IMAGE[:1].expand(3, -1, -1)),
        (np.concatenate([HWC, HWC[..., :1]], axis=2), IMAGE),
        (HWC[::-1], IMAGE.flip(1)),
        (HWC.astype(np.uint16) * 257, IMAGE),
        (IMAGE, IMAGE),
        (IMAGE[0], IMAGE[:1].expand(3, -1, -1)),
        (IMAGE / 255, IMAGE),
        (IMAGE.double() / 255, IMAGE),
        (torch.full((3, 2, 2), 6.6 / 255), torch.full((3, 2, 2), 7, dtype=torch.uint8)),
    ],
)
def test_images_of_every_type_become_uint8_planes(image: Any, expected: torch.Tensor):
    assert torch.equal(decode(image), expected) and decode(image).dtype == torch.uint8


def test_images_as_bytes_of_a_file_become_pixels(tmp_path: Path):
    Image.fromarray(HWC).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    for image in (content, {"bytes": content, "path": None}, {"bytes": None, "path": str(tmp_path / "x.png")}):
        assert torch.equal(decode(image), IMAGE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE.float(), "floating-point pixels must be from 0 to 1, got 0 to 255|got 1 to 255|got . to 25."),
        (torch.full((3, 2, 2), torch.nan), "must be from 0 to 1, got nan"),
        (IMAGE.int(), "pixels must be uint8.*int32"),
        (IMAGE[None], r"channels, got the shape \[1, 3, 5, 6\]"),
        (torch.zeros(2, 5, 6, dtype=torch.uint8), r"got the shape \[2, 5, 6\]"),
        (torch.zeros(3, 0, 6, dtype=torch.uint8), r"got the shape \[3, 0, 6\]"),
        ("x.png", "must be of Pillow, NumPy or PyTorch, got str"),
        (Image.new("F", (2, 2)), "floating-point pixels, whose range is unknown"),
    ],
)
def test_images_of_another_type_are_damaged(image: Any, message: str):
    with pytest.raises(DamagedImageError, match=message):
        MapSource([(image, 0)]).read(0)


def items(count: int, **labels: list[int]) -> list[dict[str, Any]]:
    return [
        {"img": pixels(4, 4, index), **{key: part[index] for key, part in labels.items()}} for index in range(count)
    ]


def test_map_source_reads_pairs_dictionaries_and_bare_images_alike():
    plain = [(pixels(4, 4, index), index + 1) for index in range(3)]
    for data_set in (plain, [list(pair) for pair in plain], items(3, coarse_label=[0, 0, 0], fine_label=[1, 2, 3])):
        source = pickle.loads(pickle.dumps(MapSource(data_set)))
        assert len(source) == 3 and source.labels.tolist() == [1, 2, 3] and source.labels.dtype == torch.int64
        assert torch.equal(source.read(2), pixels(4, 4, 2)) and source.name(2) == "2"
    for unlabelled in (items(3), [image for image, _ in plain], [(image,) for image, _ in plain]):
        source = MapSource(unlabelled)
        assert source.labels is None and torch.equal(source.read(1), pixels(4, 4, 1))


def test_map_source_takes_the_keys_it_is_given_and_names_those_there_are():
    data_set = [{"image": pixels(4, 4, 1), "scan": pixels(4, 4, 2), "label": 1, "kind": 2}]
    source = MapSource(data_set, image_key="scan", label_key="kind")
    assert torch.equal(source.read(0), pixels(4, 4, 2)) and source.labels.tolist() == [2]
    with pytest.raises(UserError, match="no key 'photo' for the image, only image, scan, label, kind"):
        MapSource(data_set, image_key="photo")
    with pytest.raises(UserError, match="no key of the data set is an image's: got text, label, looked for image, img"):
        MapSource([{"text": "a", "label": 1}])


class Attributed(list):  # type: ignore[type-arg]
    """A data set that keeps its labels aside too, and counts what is read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("attribute", ["targets", "labels", "_labels", "samples", "_samples"])
def test_labels_kept_aside_by_a_class_that_nobody_knows_are_not_looked_at(attribute: str):
    """60 of 80 were wrong where only the first was compared."""
    data_set = Attributed((IMAGE, index % 3) for index in range(20))
    setattr(data_set, attribute, [0] * 20 if "samples" not in attribute else [("path", 0)] * 20)
    assert MapSource(data_set).labels.tolist() == [index % 3 for index in range(20)]


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    for name in "abcd":
        (folder / name).mkdir()
        for number in range(5):
            Image.fromarray(HWC).save(folder / name / f"{number}.png")
    return folder


def test_labels_of_a_known_class_and_of_parts_of_it_are_read_without_images(class_folder: Path):
    from torchvision.datasets import ImageFolder

    reads = []
    data_set = ImageFolder(str(class_folder), loader=lambda path: (reads.append(path), Image.open(path))[1])
    wrapped = Subset(ConcatDataset([Subset(data_set, [19, 0, 7]), data_set]), list(range(22)))
    assert MapSource(wrapped).labels.tolist() == [3, 0, 1, *data_set.targets[:19]] and len(reads) == 1
    data_set.samples = data_set.samples[::-1]  # targets are left as they were
    data_set.imgs = data_set.samples
    assert MapSource(data_set).labels.tolist() == sorted(data_set.targets, reverse=True) and len(reads) == 2


class Stale:
    """A wrapper that changes labels, and hands on every attribute of what it wraps."""

    def __init__(self, inner: Any, change: Callable[[int], int]) -> None:
        self.inner, self.change = inner, change

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        image, label = self.inner[index]
        return image, self.change(label)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name) if "inner" in self.__dict__ else None


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_labels_are_what_the_items_say_through_any_wrappers(data: st.DataObject, class_folder: Path):
    from torchvision.datasets import ImageFolder

    class Overridden(ImageFolder):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], (index * 7) % 5

    class Renamed(ImageFolder):  # type: ignore[misc]
        pass

    def change(label: int) -> int:
        return (label * 3 + 1) % 4

    def build(depth: int) -> Any:
        kind = data.draw(st.sampled_from(["plain", "target", "overridden", "renamed"]))
        arguments = {"target_transform": change} if kind == "target" else {}
        found: Any = {"overridden": Overridden, "renamed": Renamed}.get(kind, ImageFolder)(
            str(class_folder), **arguments
        )
        for _ in range(depth):
            wrapper = data.draw(st.sampled_from(["subset", "concat", "stale", "none"]))
            if wrapper == "subset":
                found = Subset(found, data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=6)))
            elif wrapper == "concat":
                found = ConcatDataset([found, build(0)])
            elif wrapper == "stale":
                found = Stale(found, change)
        return found

    data_set = build(data.draw(st.integers(0, 2)))
    assert MapSource(data_set).labels.tolist() == [data_set[index][1] for index in range(len(data_set))]


def test_labels_may_be_given():
    labels = torch.tensor([4, -1])
    assert MapSource([(IMAGE, 0), (IMAGE, 1)], labels=labels).labels is labels
    with pytest.raises(UserError, match=r"labels must be int64 \[2\], got torch.float32 \(2,\)"):
        MapSource([(IMAGE, 0), (IMAGE, 1)], labels=labels.float())


def test_a_missing_label_is_minus_one_and_the_others_stay():
    assert MapSource([(IMAGE, 3), (IMAGE, -1), (IMAGE, None), (IMAGE, 5)]).labels.tolist() == [3, -1, -1, 5]
    assert MapSource([(IMAGE, None), (IMAGE, 2)]).labels.tolist() == [-1, 2]
    assert MapSource([{"image": IMAGE, "label": None}, {"image": IMAGE, "label": 1}]).labels.tolist() == [-1, 1]


def test_map_source_counts_hidden_labels_as_none_and_warns_of_other_ones(caplog: pytest.LogCaptureFixture):
    assert MapSource([(IMAGE, -1), (IMAGE, -1)]).labels is None
    assert MapSource([{"image": IMAGE, "label": None}]).labels is None and not caplog.messages
    assert MapSource([(IMAGE, "a caption")]).labels is None
    assert "labels of type str are not whole numbers" in caplog.messages[0]


class Faulty(list):  # type: ignore[type-arg]
    """A data set whose first item cannot be decoded."""

    def __getitem__(self, index: Any) -> Any:
        if index == 0:
            raise OSError("broken\ndata stream")
        return super().__getitem__(index)


def test_map_source_passes_over_a_damaged_first_item():
    source = MapSource(Faulty([None, (IMAGE, 4), (IMAGE, 5)]))
    assert source.labels[1:].tolist() == [4, 5]
    with pytest.raises(DamagedImageError, match=r"^0 is damaged \(OSError: broken data stream\)$"):
        source.read(0)
    with pytest.raises(UserError, match="no image of the data set can be read: OSError: broken data stream"):
        MapSource(Faulty([None]))


def test_torchvision_data_set_is_read_from_its_files(tmp_path: Path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 5), ("t10k", 3)):
        header = (0x00000803).to_bytes(4, "big") + b"".join(number.to_bytes(4, "big") for number in (count, 28, 28))
        images = b"".join(bytes([10 * number + len(name)]) * 784 for number in range(count))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images)
        labels = (0x00000801).to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(range(9, 9 - count, -1))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    data = load_data_set("torchvision:MNIST", tmp_path)
    assert data.pretraining is data.train.images and data.view_size == 28 and data.name == "torchvision:MNIST"
    assert data.train.images[:, 2, 3, 4].tolist() == [5, 15, 25, 35, 45] and data.train.labels.tolist() == [
        9,
        8,
        7,
        6,
        5,
    ]
    assert data.test.images[:, 0, 0, 0].tolist() == [4, 14, 24] and data.test.labels.tolist() == [9, 8, 7]
    assert data.class_names[9] == "9 - nine" and data.mean == (0.485, 0.456, 0.406)


def test_torchvision_data_set_with_splits_and_without_whole_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision import datasets

    class Splits(datasets.VisionDataset):  # type: ignore[misc]
        def __init__(self, root: str, split: str = "train", download: bool = True) -> None:
            assert not download
            if split not in ("train", "val"):
                raise ValueError("unknown split")
            self.images = [
                Image.new("RGB", (120, 120), (value,) * 3) for value in {"train": (1, 2), "val": (3,)}[split]
            ]

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Any:
            return self.images[index], index

    monkeypatch.setattr(datasets, "Splits", Splits, raising=False)
    data = load_data_set("torchvision:Splits", tmp_path)
    assert data.train.images.shape == (2, 3, 120, 120) and data.view_size == 120 and data.test.images[0, 0, 0, 0] == 3
    assert data.class_names == ("0", "1")


def test_torchvision_test_split_whose_files_are_missing_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from torchvision import datasets

    class Partial(datasets.VisionDataset):  # type: ignore[misc]
        def __init__(self, root: str, split: str = "train") -> None:
            if split != "train":
                raise RuntimeError(f"the archive of {split} is missing")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return IMAGE, index

    monkeypatch.setattr(datasets, "Partial", Partial, raising=False)
    assert load_data_set("torchvision:Partial", tmp_path).test is None
    assert caplog.messages == ["torchvision:Partial has no test split: the archive of test is missing"]


@pytest.mark.parametrize(
    ("name", "directory", "message"),
    [
        ("torchvision:MNIST", Path("."), "`data` torchvision:MNIST cannot be read from `data_dir` . .nothing is downl"),
        ("torchvision:STL10", Path("."), "`data` torchvision:STL10 cannot be read.*not found"),
        ("torchvision:MNIST", None, "`data_dir` is required with `data` torchvision:MNIST"),
        ("torchvision:MNIST", Path("/nowhere"), "`data_dir` must be an existing folder, got /nowhere"),
        ("torchvision:mnist", Path("."), "must name a class of torchvision.datasets, got 'torchvision:mnist'"),
        ("torchvision:VisionDataset", Path("."), "must name a class of torchvision.datasets"),
        ("torchvision:DatasetFolder", Path("."), "cannot be read"),
    ],
)
def test_torchvision_problems_are_one_clear_line(name: str, directory: Path | None, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message) as error:
        load_data_set(name, tmp_path if directory == Path(".") and "cannot" not in message else directory)
    assert "\n" not in str(error.value)


class Table(list):  # type: ignore[type-arg]
    """A stand-in for datasets.Dataset: rows by number, columns by name."""

    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None = None) -> None:
        super().__init__(rows)
        self.column_names = list(rows[0])
        self.features = {"label": SimpleNamespace(names=names)}

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the package datasets, which says what was asked of it."""
    rows = [{"image": Image.new("RGB", (9, 9), (index,) * 3), "label": index % 2} for index in range(4)]
    hidden = [{**row, "label": -1} for row in rows]
    splits = {"test": Table(hidden), "train": Table(rows, ["cat", "dog"]), "validation": Table(rows[1:])}
    asked: list[tuple[str, str]] = []

    def load(function: str, result: Any) -> Any:
        return lambda path: asked.append((function, path)) or result

    package = SimpleNamespace(
        load_from_disk=load("load_from_disk", splits), load_dataset=load("load_dataset", splits["train"]), asked=asked
    )
    monkeypatch.setitem(sys.modules, "datasets", package)
    return package


def test_hugging_face_data_set_saved_to_disk_tests_with_the_split_that_has_labels(
    package: SimpleNamespace, tmp_path: Path
):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    data = load_data_set("hf:saved", tmp_path)
    assert package.asked == [("load_from_disk", str(tmp_path / "saved"))]
    assert data.pretraining is data.train.images and data.pretraining.shape == (4, 3, 9, 9)
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3] and data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.test.images[:, 0, 0, 0].tolist() == [1, 2, 3] and data.test.labels.tolist() == [1, 0, 1]
    assert data.class_names == ("cat", "dog")


def test_hugging_face_splits_without_one_to_train_on_are_named(package: SimpleNamespace, tmp_path: Path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    package.load_from_disk = lambda path: {"a": None, "b": None}
    with pytest.raises(UserError, match="must have a split named train, got a, b"):
        load_data_set(f"hf:{tmp_path}")


def test_hugging_face_files_in_a_folder_are_one_split(package: SimpleNamespace, tmp_path: Path):
    data = load_data_set(f"hf:{tmp_path}", view_size=5, residence="stream")
    assert package.asked == [("load_dataset", str(tmp_path))]
    assert data.test is None and data.view_size == 5 and isinstance(data.pretraining, MapSource)


def test_hugging_face_name_that_is_no_folder_is_refused_instead_of_downloaded(package: SimpleNamespace, tmp_path: Path):
    with pytest.raises(UserError, match=r"`data` hf:PATH must be an existing folder, got .*cifar10 \(nothing is downl"):
        load_data_set("hf:cifar10", tmp_path)
    assert package.asked == []


def test_missing_package_of_hugging_face_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets, which is missing: pip install datasets"):
        load_data_set(f"hf:{tmp_path}")


def test_lists_of_files_are_read_as_domainnet_publishes_them(tmp_path: Path):
    for place, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        (tmp_path / "clipart" / "a b").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + place, 7), colour).save(tmp_path / "clipart" / "a b" / f"{place}.png")
    lines = [f"clipart/a b/{place}.png {label}" for place, label in ((0, 5), (1, 0), (2, 344))]
    (tmp_path / "clipart_train.txt").write_text("\n".join(lines[:2]) + "\n")
    (tmp_path / "clipart_test.txt").write_text(lines[2])
    data = load_data_set("list:clipart", tmp_path, residence="stream")
    assert data.train.labels.tolist() == [5, 0] and data.test.labels.tolist() == [344]
    assert data.train.read(1)[:, 0, 0].tolist() == [0, 255, 0] and data.test.read(0).shape == (3, 7, 11)
    (tmp_path / "real_train.txt").write_text(lines[0])
    assert load_data_set("list:real", tmp_path).notes == (f"no real_test.txt in {tmp_path}: no scores",)
    for content, message in (
        ("clipart/a b/0.png", r"damaged in line 1: .*got 'clipart/a b/0.png'"),
        ("", "names no images"),
        ("gone.png 3", "gone.png, which is missing"),
    ):
        (tmp_path / "real_train.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            load_data_set("list:real", tmp_path)
    with pytest.raises(UserError, match=r"sketch_train.txt is missing"):
        load_data_set("list:sketch", tmp_path)
    with pytest.raises(UserError, match="must be the folder that holds the lists"):
        load_data_set("list:sketch", None)
