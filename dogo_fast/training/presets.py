"""Named starting points for ``dogo-fast pretrain --preset NAME``; every option still overrides them.

Sources: the authors' code (DoGo), SimCLR appendix B.9 (CIFAR-10), SimSiam appendix D (CIFAR-10), solo-learn's settings
for the same data sets. None of the long runs has been measured with this library yet.
"""

from typing import Any

_SIMCLR = {
    "epochs": 1000,
    "batch_size": 512,
    "optimiser": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "warmup_epochs": 10,
    "save_every": 100,
}
_AUTHORS = {
    "epochs": 1000,
    "batch_size": 256,
    "optimiser": "adam",
    "learning_rate": 3e-4,
    "weight_decay": 1e-6,
    "decay_all": True,  # their optimiser is given all parameters
    "temperature": 0.5,
    "kd_weight": (100.0, 1.0),
    "kl_reduction": "mean",
    "schedule": "constant",
    "save_every": 100,
}
_SIMSIAM = {
    "epochs": 800,
    "batch_size": 512,
    "method": "simsiam",
    "optimiser": "sgd",
    "learning_rate": 0.06,
    "weight_decay": 5e-4,
    "decay_all": True,  # as SimSiam's code
    "save_every": 100,
}

PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "cifar10-r18-r18": {"data": "cifar10", "peers": "resnet18", **_SIMCLR},
    "cifar10-r18-r50": {"data": "cifar10", "peers": ("resnet18", "resnet50"), **_SIMCLR},
    "cifar10-mobilenetv2-r50": {"data": "cifar10", "peers": ("mobilenetv2", "resnet50"), **_SIMCLR},
    "cifar10-r18-r50-authors": {"data": "cifar10", "peers": ("resnet18", "resnet50"), **_AUTHORS},
    "cifar10-r18-r18-simsiam": {"data": "cifar10", "peers": "resnet18", **_SIMSIAM},
    "cifar100-r18-r50": {"data": "cifar100", "peers": ("resnet18", "resnet50"), **_SIMCLR},
    "stl10-r18-r50": {"data": "stl10", "peers": ("resnet18", "resnet50"), **_SIMCLR, "epochs": 200, "batch_size": 256},
    "tiny-imagenet-r18-r50": {"data": "tiny-imagenet", "peers": ("resnet18", "resnet50"), **_SIMCLR, "epochs": 400},
    "imagenet-r18-r50": {
        "data": "folder",
        "peers": ("resnet18", "resnet50"),
        "epochs": 100,
        "batch_size": 1024,
        "optimiser": "lars",
        "learning_rate": 1.2,
        "weight_decay": 1e-6,
        "warmup_epochs": 10,
        "save_every": 10,
    },
}
"""By name: fields of ``PretrainConfig`` that differ from the defaults."""
