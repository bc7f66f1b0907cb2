"""Launches recorded without a GPU and compiled for any: what ``dogo-fast tune`` and the compile report share."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dogo_fast.ops import core
from dogo_fast.ops.launches import Device, Launch, pretending
from dogo_fast.ops.library import LOSSES

if TYPE_CHECKING:
    from dogo_fast.kernels.configurations import Configuration, Table

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}
"""Of an A100, of an H100 (SXM) or H200, of a B200. Their number decides in how many parts a launch cuts the keys."""


@dataclass(frozen=True)
class KernelCase:
    """One loss at one size, to record and compile its kernels; ``variant`` is "static", "online" (small temperatures),
    "learnt" (tensor temperatures) or "rows". The augmentation is a case too: D is the side of images and views,
    ``variant`` the recipe."""

    loss: str
    dtype: str
    D: int
    N: int
    variant: str


def launches(
    case: KernelCase, target: str, tiles: "Configuration | Table | None" = None, multiprocessors: int | None = None
) -> list[Launch]:
    """The launches of one forward and backward pass of a loss on a target, recorded on tensors without memory; with
    the given tiles or those of a table, by default the shipped one, and for so many multiprocessors, by default those
    of MULTIPROCESSORS, or sm_90's."""
    from dogo_fast.kernels.configurations import SHIPPED
    from dogo_fast.ops import tile_tables

    multiprocessors = multiprocessors or MULTIPROCESSORS.get(target, MULTIPROCESSORS["sm_90"])
    device = Device(target, multiprocessors)
    dtype = getattr(torch, case.dtype)
    loss = LOSSES[case.loss]
    learnt = torch.empty((), device="meta") if case.variant == "learnt" else None
    number = 0.02 if case.variant == "online" else 0.5
    reduction = "none" if case.variant == "rows" else "sum"
    settings: dict[str, tuple[Any, ...]] = {
        "nt_xent": (learnt, number, reduction),
        "similarity_kl": (learnt, number, learnt, number / 2, reduction, case.variant == "static"),
        "dogo_loss": (learnt, number, learnt, number / 5, 1.0, 1.0, "batchmean"),
    }
    views = [torch.empty(case.N, case.D, dtype=dtype, device="meta") for _ in loss.views]
    arguments = (*views, *settings[case.loss], "float32", "triton")
    with pretending(device) as recorded, tile_tables.forced(tiles or SHIPPED):
        outputs = core.forward(loss, *arguments)
        upstream = [outputs[0], *[None] * (len(loss.values) - 1)]
        core.backward(loss, *upstream, *outputs[len(loss.values) :], *arguments)
    return recorded


def buffer_bytes(recorded: list[Launch]) -> int:
    """Bytes of every tensor that the launches of a loss are given, but for its inputs: gradients, what the forward
    keeps, and what lives for a launch or two."""
    found: dict[tuple[Any, ...], int] = {}
    for launch in recorded:
        inputs = ("p_a_1", "p_b_1", "p_a_2", "p_b_2") if launch.kernel.__name__ == "normalize_kernel" else ()
        for name, value in launch.values.items():
            if isinstance(value, torch.Tensor) and name not in inputs:
                found[value.untyped_storage(), value.storage_offset(), value.shape] = value.nbytes
    return sum(found.values())


def build(launch: Launch, target: str) -> Any:
    """Compile one recorded launch as Triton's own launcher would specialise it: the kernel as Triton has it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = launch.given
    options = {key: values.pop(key) for key in ("num_warps", "num_stages") if key in values}
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        found: list[tuple[tuple[int, ...], Any, str, bool]] = []
        signature[parameter.name] = _specialise(values[parameter.name], parameter.is_constexpr, (index,), found)
        constants |= {path: value for path, value, kind, _ in found if kind == "constexpr"}
        attributes |= {path: [["tt.divisibility", 16]] for path, _, _, aligned in found if aligned}
    amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=gpu, options=options)


def _specialise(value: Any, is_constexpr: bool, path: tuple[int, ...], found: list[Any]) -> Any:
    """The type of an argument, a struct of types for a struct; to ``found``, (path, value, type, whether divisible by
    16) of every number and pointer in it."""
    if isinstance(value, tuple) and not is_constexpr:
        types = [_specialise(each, False, (*path, place), found) for place, each in enumerate(value)]
        return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
    kind, aligned = _specialisation(value, is_constexpr)
    found.append((path, value, kind, aligned))
    return kind


def _specialisation(value: Any, is_constexpr: bool) -> tuple[str, bool]:
    """(type, whether divisible by 16) of an argument."""
    pointers = {
        torch.float32: "*fp32",
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.uint8: "*u8",
        torch.int32: "*i32",
        torch.int64: "*i64",
    }
    if is_constexpr or value is None or (isinstance(value, int) and value == 1):
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        return pointers[value.dtype], True
    return ("i32", value % 16 == 0) if isinstance(value, int) else ("fp32", False)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread.

    Raises:
        subprocess.CalledProcessError: cuobjdump does not know the file.
    """
    text = dump(cubin, "-res-usage")
    registers, stack = (int(re.findall(rf"{name}:(\d+)", text)[-1]) for name in ("REG", "STACK"))
    return registers, stack


def dump(cubin: bytes, option: str) -> str:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, option, path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
