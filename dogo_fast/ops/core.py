"""The core of every loss: from one description follow schema, implementation, fake kernel and autograd.

A ``Loss`` says what its operator is given and gives, and how its problem is made of that; ``register`` makes of it

    NAME(views, temperatures, settings, product, backend) -> (values, saved)
    NAME_backward(gradients of the values, saved, and the same again) -> (gradients of the views, of the temperatures)

A temperature travels as ``Tensor? name_tensor, float name``: the tensor when there is one, else the number.
``product`` is the dtype in which float32 rows are multiplied: ``"bfloat16"`` or ``"float16"`` under autocast, else
``"float32"``, on a GPU as torch.set_float32_matmul_precision says when the operator runs. 16-bit rows are multiplied as
they are on a GPU; on a CPU float32 products, which are more exact, stand in for 16-bit ones that would be slower.
``backend`` names what computes: a module with ``Problem``, ``allocate_saved``, ``forward`` and ``backward``, as
triton_backend.py and cpp_backend.py have them (``Backend``). ``saved`` is what the backward reads besides.

Both have an overload, NAME.numbers, that takes a float64 tensor on the CPU besides, in place of every ``float`` of the
temperatures and settings, in their order: torch.compile makes a graph for each value of a number that an operator is
given, and one for all of a tensor. (An optional argument would cost every call in eager mode some 5 µs.)
"""

import functools
import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dogo_fast import kernels, private
from dogo_fast.ops.backend import AUTOCAST_DEVICES
from dogo_fast.ops.problem import Gradients, Pair, Temperature

_library = torch.library.Library("dogo_fast", "DEF")
PRODUCTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KERNELS = {"triton": "dogo_fast.ops.triton_backend", "cpp": "dogo_fast.ops.cpp_backend"}
"""The modules that compute NT-Xent, the similarity KL and what is made of them."""


class Backend(Protocol):
    """What a module that computes a loss has.

    ``values`` and ``upstream`` go by the names that the loss gives its values; ``rows`` and ``factor`` are the values
    of every row and their gradients, where the loss has a value a row, and None else.
    """

    Problem: type[Any]

    def allocate_saved(self, problem: Any, device: torch.device) -> tuple[Tensor, ...]:
        """Uninitialised; the shapes depend on the problem's sizes and dtypes only."""

    def forward(
        self, problem: Any, pairs: tuple[Pair, ...], values: Mapping[str, Tensor], rows: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Write the values; return what the backward reads."""

    def allocate_gradients(self, problem: Any, device: torch.device) -> Gradients:
        """Uninitialised."""

    def backward(
        self,
        problem: Any,
        saved: tuple[Tensor, ...],
        upstream: Mapping[str, Tensor | None],
        factor: Tensor | None,
    ) -> Gradients:
        """Gradients of the views and of the temperatures that are tensors."""


@dataclass(frozen=True, eq=False)
class Loss:
    """One loss: all that its operators, their fake kernels and their autograd follow from.

    Args:
        name: of the operator, torch.ops.dogo_fast.NAME.
        pairs: names of the two views (or queries and keys) of each peer.
        temperatures: names, each with its place in ``Gradients.temperatures``.
        settings: everything else that decides, as a schema declares it: "str reduction".
        values: names of what it gives, 0-d tensors, or one with a value a row.
        saved: names of what the backward reads besides the inputs.
        terms: called with the numbers of rows of the two views, the temperatures, and the settings; gives the fields
            that the backend's ``Problem`` has beyond those of ``Inputs``. ``rows_b`` among them: views must be of
            one size: others, past the checks of functional.py, are then found by the kernels' own.
        backends: what computes it, by the name that users give: a module's name, imported on first use, or a Backend.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    temperatures: Mapping[str, int]
    settings: tuple[str, ...]
    values: tuple[str, ...]
    saved: tuple[str, ...]
    terms: Callable[..., dict[str, Any]]
    backends: Mapping[str, str | Backend] = field(default_factory=lambda: KERNELS)

    def __call__(
        self,
        pairs: tuple[Pair, ...],
        temperatures: tuple[float | Tensor, ...],
        settings: tuple[Any, ...],
        backend: str,
    ) -> tuple[Tensor, ...]:
        """The values by the operator; arguments are checked already."""
        views = [view for pair in pairs for view in pair]
        _refuse_forward_mode(self.name, backend, *views, *temperatures)
        travelling = [part for temperature in temperatures for part in _split(temperature)]
        operator = getattr(torch.ops.dogo_fast, self.name)
        arguments = (*travelling, *settings, _product(views[0]), backend + _LAYOUT)
        if torch.compiler.is_compiling():
            arguments = _gather_numbers(arguments)
        outputs = operator(*views, *arguments)
        values: tuple[Tensor, ...] = outputs[: len(self.values)]
        return values

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(name for pair in self.pairs for name in pair)

    @property
    def schemas(self) -> tuple[tuple[str, str], ...]:
        """Of the operator and of its backward, and of the overloads of both.

        The backward is given the inputs for their shapes and dtypes, and so that a second derivative, which it refuses,
        is found in the graph; their values are not read.
        """
        views = [f"Tensor {name}" for name in self.views]
        temperatures = [f"Tensor? {name}_tensor, float {name}" for name in self.temperatures]
        given = ", ".join((*views, *temperatures, *self.settings, "str product", "str backend"))
        saved = ", ".join(f"Tensor {name}" for name in self.saved)
        values = ", ".join(f"Tensor {name}" for name in self.values)
        upstream = ", ".join(f"Tensor? upstream_{name}" for name in self.values)
        gradients = ", ".join(f"Tensor gradient_{name}" for name in (*self.views, *self.temperatures))
        return tuple(
            (
                f"{self.name}{overload}({given}{more}) -> ({values}, {saved})",
                f"{self.name}_backward{overload}({upstream}, {saved}, {given}{more}) -> ({gradients})",
            )
            for overload, more in (("", ""), (".numbers", ", Tensor numbers"))
        )


# ------------------------------------------------------------------------------------------------ before the call


def _sources(*files: Path) -> str:
    """A few letters that change with what is in the files; without them (an installation of byte code alone), none."""
    contents = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files) if file.is_file()))
    return contents.hexdigest()[:12]


# torch.compile keeps compiled graphs on disk and finds them again by the graph alone: after an upgrade that changes the
# shape of a saved buffer it would run one that expects the old shape, and fail. So the name of the backend in a graph
# carries all that may decide the shapes. The files are read (1 ms), not imported: configurations.py reads tiles.json.
_LAYOUT = ":" + _sources(
    *(file for folder in (__file__, kernels.__file__) for file in Path(folder).parent.glob("*.py"))
)


def _refuse_forward_mode(name: str, backend: str, *inputs: object) -> None:
    """An operator without a forward-mode formula would silently drop the tangents."""
    if torch.compiler.is_compiling():
        return
    for tensor in inputs:
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"dogo_fast.{name} has no forward-mode derivative with backend={backend!r}: use backend='reference'"
            )


def _split(temperature: float | Tensor) -> tuple[Tensor | None, float]:
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)


def _gather_numbers(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """An operator's arguments, or its overload's where torch.compile was seen to be given another number than before.

    It takes a number for a variable only where all that is made of it is arithmetic with tensors.
    """
    numbers = [each for each in arguments if isinstance(each, float)]
    if all(map(private.is_constant, numbers)):
        return arguments
    one = torch.ones((), dtype=torch.float64, device="cpu")
    placeholders = (1.0 if isinstance(each, float) else each for each in arguments)
    return *placeholders, torch.stack([number * one for number in numbers])


def _product(tensor: Tensor) -> str:
    """The dtype in which float32 rows are to be multiplied here and now: autocast's, else their own."""
    kind = tensor.device.type
    if kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind):
        return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    return "float32"


# ------------------------------------------------------------------------------------------------ implementations


class Call(NamedTuple):
    """An operator's arguments, taken apart."""

    backend: Backend
    problem: Any
    pairs: tuple[Pair, ...]

    @property
    def device(self) -> torch.device:
        return self.pairs[0][0].device

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.problem.value_dtype, device=self.device)


def _name(backend: str) -> str:
    return backend.partition(":")[0]


def _take_apart(loss: Loss, arguments: tuple[Any, ...], fake: bool) -> Call:
    """Of an operator's arguments: views, temperatures, settings, product, backend, numbers."""
    given = iter(arguments)
    pairs = tuple((next(given), next(given)) for _ in loss.pairs)
    temperatures = tuple(Temperature(next(given), next(given)) for _ in loss.temperatures)
    settings = tuple(next(given) for _ in loss.settings)
    product, backend = next(given), next(given)
    numbers: Tensor | None = next(given, None)
    if numbers is not None and not fake:
        read = iter(numbers.tolist())
        temperatures = tuple(Temperature(tensor, next(read)) for tensor, _ in temperatures)
        settings = tuple(next(read) if isinstance(each, float) else each for each in settings)
    first, second = pairs[0]
    shapes = tuple((view.shape[1], view.dtype) for view, _ in pairs)
    remembered = not fake and all(temperature.tensor is None for temperature in temperatures)
    pose = _pose if remembered else _pose.__wrapped__  # sizes may be symbolic, and a tensor is not to be held
    computed_by, problem = pose(
        loss, _name(backend), product, first.shape[0], second.shape[0], shapes, temperatures, settings
    )
    return Call(computed_by, problem, pairs)


@functools.lru_cache(maxsize=64)
def _pose(
    loss: Loss,
    backend: str,
    product: str,
    rows: int,
    keys: int,
    shapes: tuple[tuple[int, torch.dtype], ...],
    temperatures: tuple[Temperature, ...],
    settings: tuple[Any, ...],
) -> tuple[Backend, Any]:
    """What computes a loss, and its problem; training asks for the same one in every step."""
    computed_by: Any = loss.backends[backend]
    if isinstance(computed_by, str):
        computed_by = importlib.import_module(computed_by)
    widths, dtypes = zip(*shapes, strict=True)
    terms = {"rows_a": rows, "rows_b": keys, **loss.terms(rows, keys, *temperatures, *settings)}
    return computed_by, computed_by.Problem(widths=widths, dtypes=dtypes, product=PRODUCTS[product], **terms)


def forward(loss: Loss, *arguments: Any, fake: bool = False) -> tuple[Tensor, ...]:
    """The operator: its values, then what its backward reads. ``fake``: their shapes and dtypes alone."""
    call = _take_apart(loss, arguments, fake)
    rows: int | None = call.problem.value_rows
    values = {name: call.empty() if rows is None else call.empty(rows) for name in loss.values}
    if fake:
        return *values.values(), *call.backend.allocate_saved(call.problem, call.device)
    if rows is None:
        return *values.values(), *call.backend.forward(call.problem, call.pairs, values, None)
    ((name, of_rows),) = values.items()
    return of_rows, *call.backend.forward(call.problem, call.pairs, {name: call.empty()}, of_rows)


def backward(loss: Loss, *arguments: Any, fake: bool = False) -> tuple[Tensor, ...]:
    """The backward operator: gradients of views and temperatures; an empty one where none was asked for."""
    given = iter(arguments)
    upstream = {name: next(given) for name in loss.values}
    saved = tuple(next(given) for _ in loss.saved)
    call = _take_apart(loss, tuple(given), fake)
    if fake:
        gradients = call.backend.allocate_gradients(call.problem, call.device)
    elif call.problem.value_rows is None:
        gradients = call.backend.backward(call.problem, saved, upstream, None)
    else:
        (factor,) = upstream.values()
        gradients = call.backend.backward(call.problem, saved, {}, factor.contiguous())
    missing = (None,) * (len(loss.views) - len(gradients.views))
    found = (*gradients.views, *missing, *(gradients.temperatures[place] for place in loss.temperatures.values()))
    return tuple(call.empty(0) if gradient is None else gradient for gradient in found)


# ----------------------------------------------------------------------------------------------------- autograd


def _keep(loss: Loss, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What the backward reads; it has no gradient of its own, and absent upstream gradients stay absent."""
    saved = output[len(loss.values) :]
    ctx.save_for_backward(*saved, *(each if isinstance(each, Tensor) else None for each in inputs))
    ctx.others = tuple(None if isinstance(each, Tensor) else each for each in inputs)
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)


def _differentiate(loss: Loss, ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of every argument of the operator."""
    upstream = upstream[: len(loss.values)]
    if all(gradient is None for gradient in upstream):
        return (None,) * len(ctx.others)
    kept = ctx.saved_tensors  # once: activation checkpointing allows no second look
    saved, tensors = kept[: len(loss.saved)], kept[len(loss.saved) :]
    arguments = [other if tensor is None else tensor for tensor, other in zip(tensors, ctx.others, strict=True)]
    found = iter(getattr(torch.ops.dogo_fast, f"{loss.name}_backward")(*upstream, *saved, *arguments))
    gradients: list[Tensor | None] = [_asked_for(next(found), view) for view in arguments[: len(loss.views)]]
    for tensor in tensors[len(loss.views) :: 2][: len(loss.temperatures)]:
        gradients += [_asked_for(next(found), tensor), None]
    return (*gradients, *(None,) * (len(arguments) - len(gradients)))


def _asked_for(gradient: Tensor, tensor: Tensor | None) -> Tensor | None:
    """The gradient of a tensor in its dtype; None for the empty one that stands for none."""
    return None if tensor is None or gradient.dim() != tensor.dim() else gradient.to(tensor.dtype)


def _remember_backend(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.backend = _name(next(each for each in reversed(inputs) if isinstance(each, str)))


def _refuse_second_derivative(loss: Loss, ctx: Any, *_: Any) -> Any:
    raise RuntimeError(
        f"dogo_fast.{loss.name} has no second derivative with backend={ctx.backend!r}: "
        "differentiate it with backend='reference'"
    )


def register(loss: Loss) -> Loss:
    """Define torch.ops.dogo_fast.NAME and NAME_backward."""
    autograd: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
        (functools.partial(_differentiate, loss), functools.partial(_keep, loss)),
        (functools.partial(_refuse_second_derivative, loss), _remember_backend),
    )
    for schemas in loss.schemas:
        for schema, function, (differentiate, setup_context) in zip(
            schemas, (forward, backward), autograd, strict=True
        ):
            name = f"dogo_fast::{schema.partition('(')[0]}"
            # a CUDA graph that captured the overload would go on with the numbers of then
            _library.define(schema, tags=(torch.Tag.cudagraph_unsafe,) if name.endswith(".numbers") else ())
            for key in ("CUDA", "CPU"):
                _library.impl(name, functools.partial(function, loss), key)
            torch.library.register_fake(name, functools.partial(function, loss, fake=True), lib=_library)
            torch.library.register_autograd(name, differentiate, setup_context=setup_context, lib=_library)
    return loss
