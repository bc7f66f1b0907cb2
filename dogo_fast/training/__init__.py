"""Pretraining of two peers: configuration, loop, run folder."""

from dogo_fast.training.config import PretrainConfig
from dogo_fast.training.trainer import PeerResult, pretrain

__all__ = ["PeerResult", "PretrainConfig", "pretrain"]
