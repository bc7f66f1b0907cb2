"""The operators behind the losses: schema, fake kernel, autograd and the choice of backend.

``torch.ops.dogo_fast.{nt_xent,similarity_kl,dogo_loss}`` and their ``_backward`` operators, implemented by Triton
kernels (triton_backend.py) and by C++ kernels on the CPU (cpp_backend.py). The functions here take checked arguments
(``dogo_fast.functional`` checks them) and call an operator.
"""

from dogo_fast.ops.library import dogo_loss, nt_xent, similarity_kl

__all__ = ["dogo_loss", "nt_xent", "similarity_kl"]
