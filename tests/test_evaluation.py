"""k-NN and linear probe agree with scikit-learn; features come from the complete split in evaluation mode."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from dogo_fast.data import DataSet, Split
from dogo_fast.evaluation import (
    calibrate_batch_norm,
    evaluate_features,
    evaluate_untrained,
    extract_features,
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
