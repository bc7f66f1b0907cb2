"""Fine-tuning: the whole network trained on labels, from the weights that pretraining left."""

import contextlib
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from dogo_fast.data import DataSet, Pictures, Split, make_loader
from dogo_fast.evaluation.features import extract_features
from dogo_fast.peers import count_features
from dogo_fast.views import VIEW_RECIPES, Augmentation, ViewRecipe

STEPS = 600
"""Least of a fine-tuning: a few labels are gone through more often."""


def finetuned_accuracy(
    backbone: nn.Module,
    data: DataSet,
    *,
    seed: int = 0,
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    workers: int = 0,
) -> float:
    """Share of test images that a copy of the backbone with a linear layer, both trained on all labels, labels rightly.

    Adam, the learning rate falling to 0 as a half cosine, over random crops (area from 0.5) and flips, digits as they
    are; at least 600 steps. The backbone itself is not changed.

    Args:
        backbone: maps images [B, 3, S, S] to features [B, F].
        data: with labelled training images, all of them used, and test images, on the backbone's device.
        seed: of the layer, the order and the crops.
        epochs, batch_size, learning_rate: of the training.
        workers: processes that decode what streams.

    Returns:
        the accuracy, 0 … 1.

    Raises:
        ValueError: a data set without labels.
    """
    if data.train is None or data.test is None or data.train.labels is None:
        raise ValueError(f"data must have labelled training and test images, {data.name} has not")
    network = deepcopy(backbone)
    device = next(network.parameters()).device
    classes, labels = data.train.labels.to(device).unique(return_inverse=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(count_features(network, data.view_size), len(classes)).to(device)
    recipe = VIEW_RECIPES["none"] if data.name == "digits" else ViewRecipe((0.5, 1.0), (3 / 4, 4 / 3), flip=0.5)
    crops = Augmentation(
        [recipe], data.view_size, seed, mean=data.mean, deviation=data.deviation, dtype=torch.float32, device=device
    )
    images = data.train.images if isinstance(data.train, Split) else data.train
    loader = make_loader(images, min(batch_size, len(labels)), seed, device, workers)
    epochs = max(epochs, -(-STEPS // len(loader)))
    parameters = [*network.parameters(), *layer.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(loader))
    network.train()
    with contextlib.closing(loader):
        for epoch in range(1, epochs + 1):
            crops.epoch.fill_(epoch)
            for batch in loader.epoch(epoch):
                optimiser.zero_grad()
                views = crops(Pictures.of(batch.pictures), batch.indices)[0]
                F.cross_entropy(layer(network(views)), labels[batch.indices]).backward()
                optimiser.step()
                schedule.step()
    rows, test_labels = extract_features(network, data.test, data, workers)
    with torch.no_grad():
        predictions = classes[layer(rows).argmax(dim=1)]
    return int((predictions == test_labels).sum()) / len(test_labels)
