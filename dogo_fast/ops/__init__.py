"""The operators behind the losses: schema, fake kernel, autograd and the choice of backend.

``torch.ops.dogo_fast.{nt_xent,similarity_kl,dogo_loss}`` and their ``_backward`` operators, implemented by Triton
kernels (triton_backend.py) and by C++ kernels on the CPU (cpp_backend.py). The losses here take checked arguments
(``dogo_fast.functional`` checks them) and call their operators.
"""

from dogo_fast.ops.library import DOGO_LOSS, NT_XENT, SIMILARITY_KL

__all__ = ["DOGO_LOSS", "NT_XENT", "SIMILARITY_KL"]
