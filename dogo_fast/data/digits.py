"""The handwritten digits that scikit-learn carries: 1797 grey images of 8×8 pixels, no file and no download needed."""

import torch

from dogo_fast.data.data_set import DataSet, Split

TEST_IMAGES = 360


def load_digits() -> DataSet:
    """1437 training and 360 test images [N, 3, 8, 8], split by class, always the same way.

    The grey values 0 … 16 are scaled to 0 … 255 and repeated in three channels, which every backbone expects.
    """
    from sklearn.datasets import load_digits as load_sklearn_digits  # takes a second, which nobody else needs to wait
    from sklearn.model_selection import train_test_split

    values, labels = load_sklearn_digits(return_X_y=True)
    splits, greys = [], []
    for indices in train_test_split(range(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0):
        grey = torch.from_numpy(values[indices]).reshape(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
        greys.append(grey)
        splits.append(Split(grey.repeat(1, 3, 1, 1), torch.from_numpy(labels[indices]).long()))
    train, test = splits
    pixels = greys[0].double() / 255
    mean, deviation = round(pixels.mean().item(), 3), round(pixels.std(correction=0).item(), 3)
    class_names = tuple(str(digit) for digit in range(10))
    return DataSet("digits", train.images, train, test, class_names, (mean,) * 3, (deviation,) * 3)
