"""The launches of a case that the static reports look at, recorded without a GPU: of a loss, or of the views."""

import torch

from dogo_fast.ops import compiling
from dogo_fast.ops.compiling import MULTIPROCESSORS, KernelCase
from dogo_fast.ops.launches import Device, Launch, pretending
from dogo_fast.pictures import Pictures
from dogo_fast.views import VIEW_RECIPES, Augmentation
from dogo_fast.views.launch import launch_triton


def launches(case: KernelCase, target: str) -> list[Launch]:
    """On a target, on tensors without memory; of views, four of each image of a batch of squares."""
    if case.loss != "augment":
        return compiling.launches(case, target)
    dtype, recipes = getattr(torch, case.dtype), [VIEW_RECIPES[case.variant]] * 4
    augmentation = Augmentation(recipes, case.D, 0, dtype=dtype, device="meta", backend="reference")
    places = torch.empty(case.N, 3, dtype=torch.int64, device="meta")
    pictures = Pictures(torch.empty(1, dtype=torch.uint8, device="meta"), places)
    indices = torch.empty(case.N, dtype=torch.int64, device="meta")
    with pretending(Device(target, MULTIPROCESSORS.get(target, MULTIPROCESSORS["sm_90"]))) as recorded:
        launch_triton(augmentation, pictures, indices, None)
    return recorded
