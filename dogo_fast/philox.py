"""The counter-based random generator behind every draw of the trainer: Philox4x32-10 (Salmon et al., SC 2011).

A draw is a function of (seed, counter), where the counter names what is drawn: the same order of images and the same
views come out whatever the device, the batch size, the number of processes or the place where a run was interrupted,
and there is no state to save. The Triton kernels use Triton's implementation, which gives the same numbers.
"""

import numpy as np
import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF


def philox(seed: int, *counter: Tensor | int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words a counter.

    Args:
        seed: 0 to 2⁶⁴ − 1, the key.
        counter: four words of 32 bits, integers or int64 tensors that broadcast; at least one is a tensor.

    Returns:
        four int64 tensors of the broadcast shape, each uniform in 0 … 2³² − 1.
    """
    tensors = [word for word in counter if isinstance(word, Tensor)]
    like = tensors[0]
    c0, c1, c2, c3 = torch.broadcast_tensors(
        *(torch.as_tensor(word, dtype=torch.int64, device=like.device) & LOW for word in counter)
    )
    k0, k1 = seed & LOW, seed >> 32 & LOW
    for _ in range(ROUNDS):
        # int64 products wrap: all 64 bits are those of the unsigned product
        product_0, product_1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (product_1 >> 32 & LOW) ^ c1 ^ k0
        c2 = (product_0 >> 32 & LOW) ^ c3 ^ k1
        c1, c3 = product_1 & LOW, product_0 & LOW
        k0, k1 = k0 + KEY_STEPS[0] & LOW, k1 + KEY_STEPS[1] & LOW
    return c0, c1, c2, c3


def permutation(seed: int, epoch: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """A random order of ``count`` things, int64 [count]: the same for the same seed and epoch on every device."""
    first, second, _, _ = philox(seed, torch.arange(count, device=device), epoch, 0, 0)
    return (first << 31 | second >> 1).argsort(stable=True)


def derive_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose (such as "order") that shares nothing with those for other purposes; below 2⁶³."""
    sequence = np.random.SeedSequence([seed, *purpose.encode()])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
