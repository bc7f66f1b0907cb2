"""Everything that is asked of one network's features, by name: what the paper and its comparisons measure.

    kind          what                                                                 names
    knn           weighted votes of the 20 and of the 200 nearest training images      knn, knn-200
    linear        logistic regression on all training labels                           linear
    probe         the paper's: a linear layer by Adam, chosen on 15 % held out         probe
    labels        logistic regression on 1, 5 and 10 % of each class's labels          labels-1 …
    noise         the same on labels of which some are wrong                           noise-symmetric-20 …
    imbalance     the same on a power-law part of the training images                  imbalance
    corruptions   ``linear`` on corrupted test images, five severities, and the mean   corruption-fog-3 …, corruptions
    transfer      k-NN and regression on other data sets                               transfer-digits-knn, … -linear
    finetune      the whole network trained on 1 and 10 % of the labels                finetune-1, finetune-10

All are accuracies on complete test splits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dogo_fast.data import DataSet
from dogo_fast.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from dogo_fast.evaluation.features import extract_features, scorable
from dogo_fast.evaluation.finetune import finetuned_accuracy
from dogo_fast.evaluation.knn import knn_accuracy
from dogo_fast.evaluation.linear import LinearProbe
from dogo_fast.evaluation.probe import probe_accuracies
from dogo_fast.evaluation.subsets import balanced_subset, flip_labels, power_law_subset

NEIGHBOURS = (20, 200)
LABEL_SHARES = (0.01, 0.05, 0.10)
FINETUNE_SHARES = (0.01, 0.10)
NOISE_RATES = {"symmetric": (0.2, 0.4, 0.6, 0.8), "pair": (0.2, 0.4)}
IMBALANCE = 0.2
"""γ of the power law, the authors' default."""

Found = dict[str, list[float]]
"""By name, an accuracy 0 … 1 for each seed; one alone where nothing is drawn."""


class Suite:
    """The scores of one backbone on one data set: ``Suite(backbone, data).scores(["knn", "linear"])``.

    Args:
        backbone: maps images [B, 3, S, S] to features [B, F].
        data: with labelled training and test images, on the backbone's device.
        transfer: other such data sets, of different names; their images are seen as those of ``data``: at its size,
            normalised by its mean and deviation.
        seeds: of the draws of labels, of the paper's probe and of fine-tuning.
        workers: processes that decode what streams.
        severities: of corruptions.

    Raises:
        ValueError: a data set without labels, or two to transfer to of one name.
    """

    def __init__(
        self,
        backbone: nn.Module,
        data: DataSet,
        transfer: Sequence[DataSet] = (),
        seeds: Sequence[int] = (0,),
        workers: int = 0,
        severities: Sequence[int] = SEVERITIES,
    ) -> None:
        for each in (data, *transfer):
            if each.train is None or each.test is None:
                raise ValueError(f"data must have labelled training and test images, {each.name} has not")
        seen: dict[str, Any] = {"view_size": data.view_size, "mean": data.mean, "deviation": data.deviation}
        self.backbone, self.data = backbone, data
        self.transfer = {name_of_transfer(each.name): replace(each, **seen) for each in transfer}
        if len(self.transfer) < len(transfer):
            raise ValueError(f"transfer must be of different names, got {', '.join(each.name for each in transfer)}")
        self.seeds, self.workers, self.severities = tuple(seeds), workers, tuple(severities)
        self._features: dict[str, tuple[Tensor, Tensor]] = {}
        self._probe: LinearProbe | None = None

    def scores(self, names: Sequence[str]) -> Found:
        """Of the kinds that are named, keys of ``KINDS``.

        Raises:
            ValueError: another name.
            UserError: features that are not finite, damaged images, or a worker that died.
        """
        unknown = [name for name in names if name not in KINDS]
        if unknown:
            raise ValueError(f"names must be of {', '.join(KINDS)}, got {', '.join(unknown)}")
        with scorable(self.data):
            return {key: value for name in names for key, value in KINDS[name](self)}

    def _rows(self, part: str) -> tuple[Tensor, Tensor]:
        """Features and labels of "train" or "test", extracted once."""
        if part not in self._features:
            images = self.data.train if part == "train" else self.data.test
            assert images is not None
            self._features[part] = extract_features(self.backbone, images, self.data, self.workers)
        return self._features[part]

    def _linear_probe(self) -> LinearProbe:
        if self._probe is None:
            self._probe = LinearProbe(*self._rows("train"))
        return self._probe

    def _knn(self) -> Iterator[tuple[str, list[float]]]:
        for neighbours in NEIGHBOURS:
            name = "knn" if neighbours == NEIGHBOURS[0] else f"knn-{neighbours}"
            yield name, [knn_accuracy(*self._rows("train"), *self._rows("test"), neighbours=neighbours)]

    def _linear(self) -> Iterator[tuple[str, list[float]]]:
        yield "linear", [self._linear_probe().accuracy(*self._rows("test"))]

    def _adam(self) -> Iterator[tuple[str, list[float]]]:
        yield "probe", probe_accuracies(*self._rows("train"), *self._rows("test"), seeds=self.seeds)

    def _of_some(self, choose: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> list[float]:
        """Logistic regression on rows and labels that are chosen of the training labels, for each seed."""
        features, labels = self._rows("train")
        chosen = (choose(labels, seed) for seed in self.seeds)
        return [
            LinearProbe(features[rows.to(features.device)], given).accuracy(*self._rows("test"))
            for rows, given in chosen
        ]

    def _labels(self) -> Iterator[tuple[str, list[float]]]:
        for share in LABEL_SHARES:
            yield f"labels-{100 * share:g}", self._of_some(partial(_part, balanced_subset, share))

    def _noise(self) -> Iterator[tuple[str, list[float]]]:
        for kind, rates in NOISE_RATES.items():
            for rate in rates:
                yield f"noise-{kind}-{100 * rate:g}", self._of_some(partial(_flipped, kind, rate))

    def _imbalance(self) -> Iterator[tuple[str, list[float]]]:
        yield "imbalance", self._of_some(partial(_part, power_law_subset, IMBALANCE))

    def _corruptions(self) -> Iterator[tuple[str, list[float]]]:
        assert self.data.test is not None
        total = 0.0
        for number, name in enumerate(CORRUPTIONS):
            for severity in self.severities:
                source = torch.Generator(self._linear_probe().device).manual_seed(10 * number + severity)
                change = partial(corrupt, name=name, severity=severity, source=source)
                rows = extract_features(self.backbone, self.data.test, self.data, self.workers, change)
                accuracy = self._linear_probe().accuracy(*rows)
                total += accuracy
                yield f"corruption-{name}-{severity}", [accuracy]
        yield "corruptions", [total / len(CORRUPTIONS) / len(self.severities)]

    def _transfer(self) -> Iterator[tuple[str, list[float]]]:
        for name, data in self.transfer.items():
            other = Suite(self.backbone, data, workers=self.workers)
            for score in ("knn", "linear"):
                yield f"transfer-{name}-{score}", other.scores([score])[score]

    def _finetune(self) -> Iterator[tuple[str, list[float]]]:
        assert self.data.train is not None and self.data.train.labels is not None
        labels = self.data.train.labels
        known = (labels >= 0).nonzero()[:, 0].cpu()
        for share in FINETUNE_SHARES:
            subsets = [known[balanced_subset(labels[known.to(labels.device)], share, seed)] for seed in self.seeds]
            accuracies = [
                finetuned_accuracy(self.backbone, self.data.select(rows), seed=seed, workers=self.workers)
                for rows, seed in zip(subsets, self.seeds, strict=True)
            ]
            yield f"finetune-{100 * share:g}", accuracies


def name_of_transfer(data: str) -> str:
    """What its scores are called: transfer-NAME-knn and -linear."""
    return data.partition(":")[2] or data


def _part(
    choose: Callable[[Tensor, float, int], Tensor], amount: float, labels: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    rows = choose(labels, amount, seed)
    return rows, labels[rows.to(labels.device)]


def _flipped(kind: str, rate: float, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    return torch.arange(len(labels)), flip_labels(labels, rate, seed, kind)


KINDS: dict[str, Callable[[Suite], Iterator[tuple[str, list[float]]]]] = {
    "knn": Suite._knn,
    "linear": Suite._linear,
    "probe": Suite._adam,
    "labels": Suite._labels,
    "noise": Suite._noise,
    "imbalance": Suite._imbalance,
    "corruptions": Suite._corruptions,
    "transfer": Suite._transfer,
    "finetune": Suite._finetune,
}
"""By name, what the module's table says."""
