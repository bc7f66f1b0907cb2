"""Which precision ``auto`` means: on a CPU what is faster there, measured there."""

import functools
import statistics
import time

import torch
from torch import nn

FASTER = 1.25
"""From how many times the pace of float32 on bfloat16 is taken. On an AMD EPYC with AVX512-BF16 (Zen 4, two cores)
three measurements gave 1.60, 1.61 and 1.62, and steps of two ResNet-18 1.8."""
ROUNDS = 5


@functools.cache
def pace_of_bfloat16() -> float:
    """How many times as fast as in float32 this CPU runs a convolution, a norm and their backward under autocast in
    bfloat16: the median of paired rounds, a quarter of a second in all."""
    with torch.random.fork_rng(devices=[]):
        layers = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU()).float()
        layers = layers.to(memory_format=torch.channels_last)
        images = torch.randn(32, 256, 8, 8, dtype=torch.float32).to(memory_format=torch.channels_last)

    def seconds(dtype: torch.dtype) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = layers(images).float().square().mean()
        loss.backward()
        return time.perf_counter() - start

    ratios = [seconds(torch.float32) / seconds(torch.bfloat16) for _ in range(ROUNDS + 1)]
    return statistics.median(ratios[1:])


def automatic_precision(device: torch.device) -> tuple[str, str]:
    """bfloat16 on a GPU, and on a CPU that is faster in it; else float32. Second, what was measured, in brackets."""
    if device.type == "cuda":
        return "bfloat16", ""
    pace = pace_of_bfloat16()
    if pace >= FASTER:
        return "bfloat16", f" ({pace:.1f} × float32's pace)"
    return "float32", f" (bfloat16: {pace:.1f} × its pace)"
