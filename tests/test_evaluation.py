"""k-NN and linear probe agree with scikit-learn; features come from the complete split in evaluation mode."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2.functional import center_crop, resize

from dogo_fast.data import DataSet, Split, load_data_set
from dogo_fast.data.pixels import decode, open_file
from dogo_fast.errors import UserError
from dogo_fast.evaluation import (
    calibrate_batch_norm,
    evaluate_features,
    evaluate_untrained,
    extract_features,
    knn,
    knn_accuracy,
    linear_accuracy,
)


def overlapping_clusters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [count, 12] of five classes that overlap, on very different scales."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=source)
    centres = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    return (centres[labels] + 1.2 * torch.randn(count, 12, generator=source)) * torch.logspace(-1, 1, 12) + 3, labels


@pytest.mark.parametrize(("neighbours", "temperature"), [(20, 0.1), (5, 0.02), (1, 0.1)])
def test_knn_equals_scikit_learn(neighbours: int, temperature: float):
    train, test = overlapping_clusters(400, 1), overlapping_clusters(1500, 2)
    classifier = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
    expected = classifier.fit(*(part.numpy() for part in train)).score(*(part.numpy() for part in test))
    assert 0.3 < expected < 0.9
    ours = knn_accuracy(*train, *test, neighbours=neighbours, temperature=temperature)
    assert ours == pytest.approx(expected, abs=1.5 / 1500)  # one tie may fall otherwise


def test_knn_weighs_the_nearer_neighbour_more():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    query = torch.tensor([[1.0, 0.0]])
    labels = torch.tensor([1, 0, 0])
    # e^(1/0.1) against 2 e^(0.6/0.1): the one at hand wins; with T = 1 the two others do. k = 20 is capped at 3.
    assert knn_accuracy(train, labels, query, torch.tensor([1])) == 1.0
    assert knn_accuracy(train, labels, query, torch.tensor([1]), temperature=1.0) == 0.0


def votes_in_float64(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor], k: int, T: float
):
    """Accuracy by the formula in plain float64, all cosines at once; and how near each row's two best labels came."""
    keys, rows = (x / x.norm(dim=1, keepdim=True) for x in (train[0].double(), test[0].double()))
    cosines, nearest = (rows @ keys.T).topk(min(k, len(keys)), dim=1)
    weights = ((cosines - cosines.amax(dim=1, keepdim=True)) / T).exp()
    known = train[1].unique()
    votes = torch.stack([(weights * (train[1][nearest] == label)).sum(dim=1) for label in known], dim=1)
    best = votes.topk(min(2, len(known)), dim=1).values
    margin = best[:, 0] - best[:, -1] if len(known) > 1 else torch.ones(len(rows))
    return known[votes.argmax(dim=1)], margin


@settings(max_examples=examples(40), deadline=None)
@given(
    seed=st.integers(0, 2**31),
    labels=st.lists(st.one_of(st.integers(0, 4), st.sampled_from([7, 3_000_007, -5, 2**62])), min_size=1, max_size=6),
    T=st.sampled_from([0.005, 0.01, 0.07, 0.1, 1.0, 100.0]),
    k=st.sampled_from([1, 5, 20, 200]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 100.0, 1e25]),
)
def test_votes_are_those_of_float64_for_any_labels_dtype_and_temperature(
    seed: int, labels: list[int], T: float, k: int, dtype: torch.dtype, scale: float
):
    source = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(labels)
    sets = []
    for count in (60, 40):
        narrow = dtype == torch.float16 and not 1e-3 <= scale <= 100  # what float16 does not hold
        features = torch.randn(count, 6, generator=source, dtype=torch.float64) * (1.0 if narrow else scale)
        features = features.to(dtype)
        sets.append((features, chosen[torch.randint(0, len(chosen), (count,), generator=source)]))
    train, test = sets
    winners, margin = votes_in_float64(train, test, k, T)
    clear = margin > 1e-4 / T  # 2 float32 roundings of a cosine, over T
    assume(bool(clear.any()))
    picked = test[0][clear], test[1][clear]
    expected = (winners[clear] == picked[1]).double().mean().item()
    assert knn_accuracy(*train, *picked, neighbours=k, temperature=T) == pytest.approx(expected, abs=1e-12)


def test_training_rows_in_tiles_are_those_in_one(monkeypatch: pytest.MonkeyPatch):
    train, test = overlapping_clusters(400, 1), overlapping_clusters(300, 2)
    whole = [knn_accuracy(*train, *test, neighbours=k) for k in (1, 20, 300)]
    for tile in (7, 64, 399):
        monkeypatch.setattr(knn, "KEYS", tile)
        monkeypatch.setattr(knn, "QUERIES", 11)
        assert [knn_accuracy(*train, *test, neighbours=k) for k in (1, 20, 300)] == whole


def test_no_more_than_a_tile_of_cosines_is_held(monkeypatch: pytest.MonkeyPatch):
    """5 GB at ImageNet's size, before; labels with gaps took as much."""
    made: list[int] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            made.extend(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    monkeypatch.setattr(knn, "KEYS", 50)
    monkeypatch.setattr(knn, "QUERIES", 10)
    train, test = (torch.randn(1000, 4), torch.arange(1000) * 3_000_007), (torch.randn(100, 4), torch.arange(100))
    with Watching():
        knn_accuracy(*train, *test, neighbours=5)
    assert max(made) <= max(10 * 50, 1000 * 4)


@pytest.mark.parametrize("score", [knn_accuracy, linear_accuracy])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**90])
def test_the_scale_of_features_changes_nothing(score: Callable[..., float], scale: float):
    train, test = overlapping_clusters(300, 1), overlapping_clusters(300, 2)
    assert score(train[0] * scale, train[1], test[0] * scale, test[1]) == score(*train, *test)


@pytest.mark.parametrize("score", [knn_accuracy, linear_accuracy])
def test_a_label_that_no_training_row_has_is_never_right(score: Callable[..., float]):
    train, test = overlapping_clusters(300, 1), overlapping_clusters(300, 2)
    gaps = torch.tensor([7, 3_000_007, -1, 12, 2**61])
    with_gaps = (test[0], gaps[test[1]])
    assert score(train[0], gaps[train[1]], *with_gaps) == score(*train, *test)
    unknown = torch.where(test[1] == 0, 99, test[1])
    right_elsewhere = score(*train, test[0][test[1] != 0], test[1][test[1] != 0])
    assert score(*train, test[0], unknown) == pytest.approx(right_elsewhere * float((test[1] != 0).float().mean()))


@pytest.mark.parametrize("score", [knn_accuracy, linear_accuracy])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a, b, c, d: (a.clone().index_fill_(0, torch.tensor([3]), torch.nan), b, c, d),
            "train_features .* 1 of 50",
        ),
        (lambda a, b, c, d: (a, b, c / 0, d), "test_features must be finite, got 30 of 30 rows with NaN or infinity"),
        (lambda a, b, c, d: (a, b[:4], c, d), r"train_features and train_labels must be .* got \(50, 12\) and \(4,\)"),
        (lambda a, b, c, d: (a, b, c[:0], d[:0]), r"test_features and test_labels must be .* N > 0, got \(0, 12\)"),
        (lambda a, b, c, d: (a, b.float(), c, d), r"train_labels must be whole numbers, got torch\.float32"),
    ],
)
def test_features_that_cannot_be_scored_are_refused(
    score: Callable[..., float], change: Callable[..., tuple[torch.Tensor, ...]], message: str
):
    arguments = change(*overlapping_clusters(50, 1), *overlapping_clusters(30, 2))
    with pytest.raises(ValueError, match=message):
        score(*arguments)


@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_linear_probe_equals_scikit_learn(penalty: float):
    train, test = overlapping_clusters(400, 1), overlapping_clusters(2000, 2)
    scaler = StandardScaler().fit(train[0].numpy())
    classifier = LogisticRegression(C=1 / penalty, max_iter=1000, tol=1e-8)
    classifier.fit(scaler.transform(train[0].numpy()), train[1].numpy())
    expected = classifier.score(scaler.transform(test[0].numpy()), test[1].numpy())
    assert linear_accuracy(*train, *test, penalty=penalty) == pytest.approx(expected, abs=2.5 / 2000)


def test_linear_probe_survives_a_constant_feature():
    train, test = overlapping_clusters(300, 1), overlapping_clusters(300, 2)
    with_constant = [(torch.cat([rows, torch.full((300, 1), 7.0)], dim=1), labels) for rows, labels in (train, test)]
    assert linear_accuracy(*with_constant[0], *with_constant[1]) == pytest.approx(
        linear_accuracy(*train, *test), abs=0.01
    )


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def random_split(count: int, seed: int) -> Split:
    source = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=source)
    return Split(images, torch.randint(0, 3, (count,), generator=source))


def data_of(train: Split, test: Split | None = None) -> DataSet:
    statistics = {"mean": (0.4, 0.5, 0.6), "deviation": (0.2, 0.3, 0.25)}
    return DataSet("random", train.images, train, test, ("a", "b", "c"), **statistics)


def as_seen(images: torch.Tensor) -> torch.Tensor:
    mean, deviation = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    return (images / 255 - mean[:, None, None]) / deviation[:, None, None]


def test_features_are_those_of_normalised_images_in_evaluation_mode_for_every_image():
    network, split = small_network(), random_split(1030, 1)
    network.train()
    features, labels = extract_features(network, split, data_of(split))
    assert torch.equal(labels, split.labels)
    assert network.training and network[1].num_batches_tracked == 0
    with torch.no_grad():
        torch.testing.assert_close(features, network.eval()(as_seen(split.images)), rtol=1e-4, atol=1e-5)


def test_calibration_sets_the_statistics_of_the_images_and_no_weight():
    network, split = small_network(), random_split(1000, 1)
    weights = [parameter.clone() for parameter in network.parameters()]
    calibrate_batch_norm(network, data_of(split))
    with torch.no_grad():
        activations = network[0](as_seen(split.images))
    torch.testing.assert_close(network[1].running_mean, activations.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network[1].running_var, activations.var(dim=(0, 2, 3)), rtol=5e-3, atol=0)
    assert all(torch.equal(before, now) for before, now in zip(weights, network.parameters(), strict=True))
    assert network.training and network[1].momentum == 0.1


def test_untrained_scores_are_those_of_a_calibrated_copy():
    network = small_network()
    data = data_of(random_split(200, 1), random_split(77, 2))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    scores = evaluate_untrained(network, data)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    calibrate_batch_norm(network, data)
    assert scores == evaluate_features(network, data)
    assert (scores.knn * 77) == pytest.approx(round(scores.knn * 77))  # out of all 77 test images


def test_a_data_set_without_labels_cannot_be_evaluated():
    with pytest.raises(ValueError, match="data must have labelled training and test images, random has not"):
        evaluate_features(small_network(), data_of(random_split(20, 1)))


def test_images_without_a_label_are_left_out_of_the_scores_wherever_they_are():
    train, test = random_split(60, 1), random_split(40, 2)
    hidden = [
        Split(part.images, part.labels.clone().index_fill_(0, torch.tensor([0, 7, 30]), -1)) for part in (train, test)
    ]
    kept = [Split(part.images[part.labels >= 0], part.labels[part.labels >= 0]) for part in hidden]
    network = small_network()
    whole, partly = (evaluate_features(network, data_of(*parts)) for parts in (kept, hidden))
    assert whole == partly
    with pytest.raises(UserError, match="features of random cannot be scored: test_features and test_labels must be"):
        evaluate_features(network, data_of(train, Split(test.images, torch.full((40,), -1))))


def test_features_that_are_not_finite_are_one_clear_error():
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)).log() * torch.nan

    with pytest.raises(
        UserError, match="features of random cannot be scored: train_features must be finite, got 60 of 60"
    ):
        evaluate_features(Broken(), data_of(random_split(60, 1), random_split(40, 2)))


def test_photographs_are_scored_alike_whether_they_reside_or_stream(tmp_path: Path):
    """The middle of each, as torchvision's evaluation has it, of pictures that were shrunk to the same size."""
    for number in range(12):
        pixels = torch.randint(0, 256, (20 + 7 * number, 60 - 2 * number, 3), dtype=torch.uint8)
        for split in ("train", "val"):
            (tmp_path / split / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(tmp_path / split / "ab"[number % 2] / f"{number}.png")
    network = small_network()
    found = []
    for kept, workers in (("device", 0), ("stream", 0), ("stream", 2)):
        data = load_data_set("folder", tmp_path, view_size=16, decode_size=40, residence=kept)
        assert data.train is not None
        found.append(extract_features(network, data.train, data, workers))
    assert all(torch.equal(rows, found[0][0]) and torch.equal(labels, found[0][1]) for rows, labels in found[1:])
    image = decode(open_file(str(tmp_path / "train" / "b" / "9.png")))  # the last, 83 × 42
    shrunk = resize(image, [40], antialias=True).float()
    expected = center_crop(resize(shrunk, [18], antialias=True), [16, 16]) / 255
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (data.mean, data.deviation))
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            network(((expected - mean) / deviation)[None])[0], found[0][0][-1], rtol=1e-4, atol=1e-4
        )
