"""Every launch of a Triton kernel passes here, where tools and tests listen; on a real device or a pretended one."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

INTERPRETED_MULTIPROCESSORS = 4


class Launch(NamedTuple):
    """A launch: positional arguments, and what was passed by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    switches: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    @property
    def given(self) -> dict[str, Any]:
        """Arguments, switches and Triton's options by the names of the kernel's parameters."""
        return dict(zip(self.kernel.arg_names, self.arguments, strict=False)) | self.switches

    @property
    def values(self) -> dict[str, Any]:
        """The same without structs: a field of one goes by its own name, or field_n in place n of a tuple and where the
        struct is called name_n."""
        return dict(leaf for name, value in self.given.items() for leaf in _leaves(name, value))

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    @property
    def tile(self) -> str:
        """Rows and keys of a tile of cosines, or the pixels of the augmentation's; "" for kernels that have none."""
        values = self.values
        if "BLOCK_M" in values and "PRECISION" in values:
            return f"{values['BLOCK_M']}x{values['BLOCK_N']}"
        return str(values["BLOCK"]) if "BLUR_SIZE" in values else ""


def _leaves(name: str, value: Any, suffix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, tuple):
        yield name + suffix, value
    elif hasattr(value, "_fields"):
        _, _, last = name.rpartition("_")
        suffix = f"_{last}" if last.isdigit() else suffix
        for field, each in zip(value._fields, value, strict=True):
            yield from _leaves(field, each, suffix)
    else:
        for number, each in enumerate(value, 1):
            yield from _leaves(name, each, f"{suffix}_{number}")


class Device(NamedTuple):
    """What launches ask of a device: its ``architecture`` as the tables of tiles name it ("sm_90", "gfx942"; "" where
    there is no GPU), and how many ``multiprocessors`` there are to fill."""

    architecture: str
    multiprocessors: int


# Lists, not context variables: autograd runs the backward of a GPU in a thread of its own.
_listeners: list[Callable[[Launch], None]] = []
_pretended: list[Device] = []


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **switches: Any) -> None:
    """Launch a kernel; tell who listens first."""
    for listener in _listeners:
        listener(Launch(kernel, grid, arguments, switches))
    if not _pretended:
        kernel[grid](*arguments, **switches)


@contextmanager
def listening(listener: Callable[[Launch], None]) -> Iterator[None]:
    """Call ``listener`` before each launch of the block, from whatever thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches of the block, in order, as they are made."""
    launches: list[Launch] = []
    with listening(launches.append):
        yield launches


@contextmanager
def pretending(device: Device) -> Iterator[list[Launch]]:
    """The launches that the block would make on a device: recorded, not made. Tensors may be without memory (on
    ``meta``)."""
    _pretended.append(device)
    try:
        with recorded() as launches:
            yield launches
    finally:
        _pretended.pop()


def device_of(device: torch.device) -> Device:
    """What launches ask of a device, or of the one that is pretended."""
    return _pretended[-1] if _pretended else _real(device)


@functools.cache
def _real(device: torch.device) -> Device:
    """Under the interpreter, a small stand-in."""
    if device.type != "cuda":
        return Device("", INTERPRETED_MULTIPROCESSORS)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Device(str(properties.gcnArchName).partition(":")[0], int(properties.multi_processor_count))
    return Device(f"sm_{properties.major}{properties.minor}", int(properties.multi_processor_count))
