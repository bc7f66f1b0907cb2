"""What the tables, the plots and the page read of each benchmark in a record, and what it must be."""

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from dogo_fast.compile_report import Case
from dogo_fast.work import LOSSES

from .timing import PHASES

Check = Callable[[Any, str], None]
"""Of a value and the name of its field; raises Wrong."""

DEVICES = ("cpu", "cuda")
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
PARTS_OF_A_STEP = ("augmentation", "forward", "loss", "backward", "optimisers")
MOST = 2**40
"""Of any count: the work of so many images is still a number that a float holds."""


class Wrong(Exception):
    """A field that is not what it must be: "WHAT as FIELD, got VALUE"."""

    def __init__(self, what: str, field: str, value: Any) -> None:
        shown = repr(value)
        super().__init__(f"{what} as {field}, got {shown if len(shown) <= 60 else f'{shown[:60]} …'}")


def of_type(kind: type, what: str) -> Check:
    def check(value: Any, field: str) -> None:
        if not isinstance(value, kind):
            raise Wrong(what, field, value)

    return check


text = of_type(str, "a text")
flag = of_type(bool, "true or false")


def one_of(*allowed: str) -> Check:
    def check(value: Any, field: str) -> None:
        if value not in allowed:
            raise Wrong(f"one of {', '.join(allowed)}", field, value)

    return check


def count(value: Any, field: str) -> None:
    if type(value) is not int or not 1 <= value <= MOST:
        raise Wrong(f"a whole number from 1 to {MOST}", field, value)


def is_number(value: Any) -> bool:
    """Finite, too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def above_zero(value: Any, field: str) -> None:
    if not is_number(value) or value <= 0:
        raise Wrong("a finite number above 0", field, value)


def from_zero(value: Any, field: str) -> None:
    if not is_number(value) or value < 0:
        raise Wrong("a finite number, 0 or more", field, value)


def architecture(value: Any, field: str) -> None:
    """A part of a file's name."""
    if not isinstance(value, str) or not re.fullmatch(r"sm_\d{1,4}|gfx\w{1,8}", value):
        raise Wrong("one like sm_90 or gfx942", field, value)


def share_or_none(value: Any, field: str) -> None:
    if value is not None and not is_number(value):
        raise Wrong("a finite number or null", field, value)


def quartiles(what: str, zero: bool = False) -> Check:
    def check(value: Any, field: str) -> None:
        right = isinstance(value, list) and len(value) == 3 and all(map(is_number, value))
        if not right or min(value) < 0 or (min(value) == 0 and not zero):
            raise Wrong(f"{what} {'from' if zero else 'above'} 0, three quartiles,", field, value)

    return check


def two_errors(value: Any, field: str) -> None:
    """Of the value and the gradients; what overflows is not finite."""
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, float) for each in value):
        raise Wrong("two numbers", field, value)


def named(check: Check, *needed: str) -> Check:
    """An object of values that are alike, these names among them."""

    def check_all(value: Any, field: str) -> None:
        if not isinstance(value, dict):
            raise Wrong("an object", field, value)
        for name in dict.fromkeys((*needed, *value)):
            if name not in value:
                raise Wrong(f"an object with {name!r}", field, list(value))
            check(value[name], f"{field}.{name}")

    return check_all


def fields(**checks: Check) -> Check:
    """An object with these fields; others are not looked at, one that is not there counts as null."""

    def check_all(value: Any, field: str) -> None:
        if not isinstance(value, dict):
            raise Wrong("an object", field, value)
        for name, check in checks.items():
            check(value.get(name), f"{field}.{name}")

    return check_all


RATES = fields(gemm=above_zero, exp2=above_zero, copy=above_zero)
WORK = fields(flop=from_zero, exponentials=from_zero, bytes=from_zero)
KERNEL = fields(
    kernel=text,
    tile=text,
    warps=count,
    seconds=quartiles("times"),
    run=WORK,
    needed=WORK,
    bound_seconds=from_zero,
    limiter=text,
    percent=from_zero,
)
CASE = fields(loss=text, dtype=text, D=count, N=count, variant=text)


def kernels(value: Any, field: str) -> None:
    fields(case=CASE)(value, field)
    if set(value["case"]) != set(Case._fields):
        raise Wrong(f"an object of {', '.join(Case._fields)}", f"{field}.case", list(value["case"]))
    if "unavailable" in value:
        text(value["unavailable"], f"{field}.unavailable")
        return
    fields(rates=RATES, kernels=of_type(list, "a list"))(value, field)
    for number, each in enumerate(value["kernels"]):
        KERNEL(each, f"{field}.kernels[{number}]")


def loss(value: Any, field: str) -> None:
    fields(
        loss=one_of(*LOSSES),
        device=one_of(*DEVICES),
        N=count,
        D=count,
        dtype=one_of(*ITEMSIZES),
        seconds=named(named(quartiles("times"), *PHASES), "ours"),
        faster_than=named(named(quartiles("ratios"), *PHASES)),
        missing=named(text),
        memory_bytes=named(from_zero, "ours"),
        relative_error=named(two_errors),
        roofline=fields(percent=above_zero, rates=RATES),
    )(value, field)
    named(flag, *value["seconds"], *value["faster_than"])(value.get("captured"), f"{field}.captured")


RATED = {
    "device": one_of(*DEVICES),
    "N": count,
    "per_second": named(quartiles("rates"), "ours"),
    "faster_than": named(quartiles("ratios")),
}
KINDS: dict[str, Check] = {
    "loss": loss,
    "views": fields(size=count, recipe=text, **RATED),
    "step": fields(
        backbone=text,
        phase_shares=named(quartiles("shares", zero=True), *PARTS_OF_A_STEP),
        gpu_idle_share=share_or_none,
        **RATED,
    ),
    "pretraining": fields(backbone=text, images=count, **RATED),
}
"""Nobody reads other kinds."""


def check(infos: Iterable[dict[str, Any]], gpu: dict[str, Any] | None) -> None:
    """Of the ``extra_info`` of a record's benchmarks; ``gpu``: of its machine.

    Raises:
        Wrong: a field that is missing or not what it must be.
    """
    for number, info in enumerate(infos):
        field = f"benchmarks[{number}].extra_info"
        if info["kind"] in KINDS:
            KINDS[info["kind"]](info, field)
        if "kernels" in info:
            if gpu is None:
                raise Wrong("a GPU in machine_info, or no kernels", f"{field}.kernels", info["kernels"])
            architecture(gpu.get("architecture"), "machine_info.gpu.architecture")
            kernels(info["kernels"], f"{field}.kernels")
