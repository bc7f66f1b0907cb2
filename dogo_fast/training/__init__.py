"""Pretraining of two peers: configuration, step, trainer, run folder."""

from dogo_fast.training.config import PretrainConfig
from dogo_fast.training.pretraining import PeerResult, pretrain
from dogo_fast.training.trainer import Trainer

__all__ = ["PeerResult", "PretrainConfig", "Trainer", "pretrain"]
