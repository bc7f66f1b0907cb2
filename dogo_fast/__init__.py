"""Fused losses and a lean trainer for DoGo (Distill on the Go): two peers that learn representations together."""

from dogo_fast.losses import DoGoLoss, NTXentLoss, SimilarityKLLoss, SimSiamLoss
from dogo_fast.output import CohortLossOutput, DoGoLossOutput

__all__ = [
    "CohortLossOutput",
    "DoGoLoss",
    "DoGoLossOutput",
    "NTXentLoss",
    "SimSiamLoss",
    "SimilarityKLLoss",
    "__version__",
]
__version__ = "0.1.0"
