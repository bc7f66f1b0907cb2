"""Fused losses and a lean trainer for DoGo (Distill on the Go): two peers that learn representations together."""

from pathlib import Path

if (Path(__file__).parent.parent / "kernels" / "dogo_forward.py").is_file():
    # In a source checkout the kernels lie beside the package (setup.py maps them to dogo_fast.kernels): let an import
    # from the checkout find them there.
    __path__.append(str(Path(__file__).parent.parent))

from dogo_fast.functional import DoGoLossOutput
from dogo_fast.losses import DoGoLoss, NTXentLoss, SimilarityKLLoss, SimSiamLoss

__all__ = ["DoGoLoss", "DoGoLossOutput", "NTXentLoss", "SimSiamLoss", "SimilarityKLLoss", "__version__"]
__version__ = "0.1.0"
