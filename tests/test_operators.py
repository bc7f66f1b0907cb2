"""The torch.library operators: schemas, fake kernels, autograd, compilation, launches, memory and what must not
happen."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
import triton
import triton.language as tl
from forms import thinned
from numerics import projections
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from dogo_fast import DoGoLoss, NTXentLoss, SimilarityKLLoss, functional
from dogo_fast.kernels import configurations, tiles
from dogo_fast.ops import compiling, core, cpp_backend, launches, library, tile_tables

ops = torch.ops.dogo_fast
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def backend() -> str:
    """The fused backend of the running test; see conftest."""
    return os.environ["DOGO_FAST_BACKEND"]


def inputs_of(device: torch.device, *, dtype: torch.dtype = torch.float32, count: int = 4, N: int = 10) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in projections(N, 16, count=count, dtype=dtype, device=device)]


@pytest.mark.parametrize(("learnt", "reduction"), thinned([False, True], ["mean", "none"]))
def test_opcheck_nt_xent(device: torch.device, reduction: str, learnt: bool) -> None:
    temperature = torch.tensor(0.5, device=device, requires_grad=True) if learnt else None
    settings = (temperature, 0.5, reduction, "float32", backend())
    a, b = inputs_of(device, count=2)
    torch.library.opcheck(ops.nt_xent.default, (a, b, *settings), test_utils=CHECKS)
    value, *saved = (tensor.detach() for tensor in ops.nt_xent(a, b, *settings))
    arguments = (torch.ones_like(value), *saved, a, b, *settings)
    torch.library.opcheck(ops.nt_xent_backward.default, arguments, test_utils=CHECKS[:3])


@pytest.mark.parametrize("detach_teacher", [True, False])
def test_opcheck_similarity_kl(device: torch.device, detach_teacher: bool) -> None:
    temperature = torch.tensor(0.1, device=device, requires_grad=True)
    settings = (temperature, 1.0, None, 0.2, "batchmean", detach_teacher, "float32", backend())
    inputs = inputs_of(device)
    torch.library.opcheck(ops.similarity_kl.default, (*inputs, *settings), test_utils=CHECKS)
    value, *saved = (tensor.detach() for tensor in ops.similarity_kl(*inputs, *settings))
    arguments = (torch.ones_like(value), *saved, *inputs, *settings)
    torch.library.opcheck(ops.similarity_kl_backward.default, arguments, test_utils=CHECKS[:3])


@pytest.mark.parametrize("learnt", [False, True])
def test_opcheck_dogo_loss(device: torch.device, learnt: bool) -> None:
    temperature = torch.tensor(0.5, device=device, requires_grad=True) if learnt else None
    settings = (temperature, 0.5, None, 0.1, 1.0, 2.0, "batchmean", "float32", backend())
    inputs = inputs_of(device)
    torch.library.opcheck(ops.dogo_loss.default, (*inputs, *settings), test_utils=CHECKS)
    outputs = [tensor.detach() for tensor in ops.dogo_loss(*inputs, *settings)]
    upstream = [torch.ones_like(outputs[0]), None, None, torch.ones_like(outputs[0]), None, None, None]
    arguments = (*upstream, *outputs[7:], *inputs, *settings)
    torch.library.opcheck(ops.dogo_loss_backward.default, arguments, test_utils=CHECKS[:3])


@pytest.mark.parametrize("learnt", [False, True])
def test_opcheck_numbers_in_a_tensor(device: torch.device, learnt: bool) -> None:
    """The overload, which also gives the same bits as the operator that is given the numbers."""
    temperature = torch.tensor(0.5, device=device, requires_grad=True) if learnt else None
    inputs = inputs_of(device)
    temperatures = (0.5, None, 0.1)
    expected = ops.dogo_loss(*inputs, temperature, *temperatures, 1.0, 2.0, "batchmean", "float32", backend())
    numbers = torch.tensor([0.5, 0.1, 1.0, 2.0], dtype=torch.float64)
    settings = (temperature, 7.0, None, 7.0, 7.0, 7.0, "batchmean", "float32", backend(), numbers)
    torch.library.opcheck(ops.dogo_loss.numbers, (*inputs, *settings), test_utils=CHECKS)
    outputs = [tensor.detach() for tensor in ops.dogo_loss(*inputs, *settings)]
    assert all(map(torch.equal, outputs[:7], expected[:7]))
    arguments = (torch.ones_like(outputs[0]), *[None] * 6, *outputs[7:], *inputs, *settings)
    torch.library.opcheck(ops.dogo_loss_backward.numbers, arguments, test_utils=CHECKS[:3])


def compiled_losses() -> list[Any]:
    def dogo(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        output = functional.dogo_loss((a, b), (c, d), 0.5, 0.1, kd_weight=(2, 0.5))
        return output.loss + 0.1 * output.kl_1

    def kl(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return functional.similarity_kl((a, b), (c, d), 0.1, detach_teacher=False)

    def nt(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return functional.nt_xent(a, b) + NTXentLoss(0.2, reduction="none")(c, d).sum()

    def module(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return DoGoLoss()((a, b), (c, d)).loss + SimilarityKLLoss()((a, b), (c, d))

    def automatic(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return functional.dogo_loss((a, b), (c, d)).loss

    return [dogo, kl, nt, module, automatic]


@pytest.mark.parametrize(
    ("dynamic", "loss"),
    thinned([False, True], compiled_losses()),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_compile_has_no_graph_break_and_gives_the_same_values(
    device: torch.device, dynamic: bool, loss: Callable[..., Tensor]
) -> None:
    torch.compiler.reset()
    compiler = "inductor" if loss.__name__ == "dogo" else "aot_eager"
    compiled = torch.compile(
        lambda *inputs: 2 * loss(*(1.5 * x for x in inputs)), fullgraph=True, dynamic=dynamic, backend=compiler
    )
    for N in (10, 12):
        inputs = inputs_of(device, N=N)
        expected = 2 * loss(*(1.5 * x for x in inputs))
        value = compiled(*inputs)
        torch.testing.assert_close(value, expected)
        gradients = torch.autograd.grad(value, inputs)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs))


def scheduled_losses() -> list[Any]:
    """Of four views, a learnt temperature and a number."""

    def nt(a: Tensor, b: Tensor, c: Tensor, d: Tensor, learnt: Tensor, number: float) -> Tensor:
        return functional.nt_xent(a, b, number) + functional.nt_xent(c, d, learnt)

    def kl(a: Tensor, b: Tensor, c: Tensor, d: Tensor, learnt: Tensor, number: float) -> Tensor:
        return functional.similarity_kl((a, b), (c, d), number, reduction="none").sum()

    def kl_of_two(a: Tensor, b: Tensor, c: Tensor, d: Tensor, learnt: Tensor, number: float) -> Tensor:
        """Temperatures that are equal now and then, or one of which learns."""
        pairs, teacher = ((a, b), (c, d)), max(0.3, number)
        first = functional.similarity_kl(*pairs, number, teacher_temperature=teacher, detach_teacher=False)
        return first + functional.similarity_kl(*pairs, learnt, teacher_temperature=number)

    def dogo(a: Tensor, b: Tensor, c: Tensor, d: Tensor, learnt: Tensor, number: float) -> Tensor:
        weights = (10 * number, 1 - number)
        return functional.dogo_loss((a, b), (c, d), number, number / 3, kd_weight=weights).loss

    def weight_alone(a: Tensor, b: Tensor, c: Tensor, d: Tensor, learnt: Tensor, number: float) -> Tensor:
        return functional.dogo_loss((a, b), (c, d), learnt, kd_weight=number).loss_2

    def module(a: Tensor, b: Tensor, c: Tensor, d: Tensor, learnt: Tensor, number: float) -> Tensor:
        criterion.temperature = number
        return criterion(a, b)

    criterion = NTXentLoss()
    return [nt, kl, kl_of_two, dogo, weight_alone, module]


@pytest.mark.parametrize("loss", scheduled_losses(), ids=lambda loss: loss.__name__)
def test_a_number_on_a_schedule_takes_two_graphs(device: torch.device, loss: Callable[..., Tensor]) -> None:
    """One for a number that may not change, one for all that follow, on both sides of 1/30, below which the shift of
    the exponentials is no constant. The interpreter, which is slow, is given every fourth."""
    torch.compiler.reset()
    counting = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counting)
    learnt = torch.tensor(0.4, device=device, requires_grad=True)
    inputs = [*inputs_of(device), learnt]
    for step in range(0, 20, 1 if backend() == "cpp" else 4):
        number = 0.5 * 0.8**step
        value, expected = compiled(*inputs, number), loss(*inputs, number)
        assert torch.equal(value, expected)
        gradients, theirs = (torch.autograd.grad(each, inputs, materialize_grads=True) for each in (value, expected))
        assert all(map(torch.equal, gradients, theirs))
    assert counting.frame_count == 2


def test_a_number_that_stays_is_in_the_graph(device: torch.device) -> None:
    """And no tensor on the CPU, for which a CUDA graph of the compiler's would be given up."""
    codes: list[str] = []

    def keep(module: torch.fx.GraphModule, _inputs: object) -> Any:
        codes.append(module.code)
        return module.forward

    torch.compiler.reset()
    compiled = torch.compile(functional.nt_xent, fullgraph=True, backend=keep)
    a, b = inputs_of(device, count=2)
    for temperature in (0.25, 0.25, 0.2):
        compiled(a, b, temperature)
    constant, changing = codes
    assert "0.25" in constant and "float64" not in constant and "float64" in changing


@pytest.mark.parametrize("name", library.LOSSES)
def test_no_cuda_graph_of_the_compilers_keeps_a_number_that_changes(name: str) -> None:
    for operator in (getattr(ops, name), getattr(ops, f"{name}_backward")):
        assert torch.Tag.cudagraph_unsafe in operator.numbers.tags
        assert torch.Tag.cudagraph_unsafe not in operator.default.tags


@pytest.mark.gpu
def test_a_number_on_a_schedule_is_read_anew_beside_cuda_graphs_of_the_compilers(
    choose: Callable[[str], torch.device],
) -> None:
    torch.compiler.reset()
    compiled = torch.compile(functional.nt_xent, fullgraph=True, mode="reduce-overhead")
    inputs = inputs_of(choose("gpu"), count=2)
    for step in range(12):
        value, expected = compiled(*inputs, 0.5 * 0.8**step), functional.nt_xent(*inputs, 0.5 * 0.8**step)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("temperature", -0.1, "temperature must be finite and above 0, got -0.1"),
        ("temperature", 1e-31, "temperature must be at least 1e-30, got 1e-31"),
        ("temperature", float("nan"), "temperature must be finite, got nan (float)"),
        ("kd_temperature", 0.0, "kd_temperature must be finite and above 0, got 0.0"),
        ("kd_weight", float("inf"), "kd_weight must be finite, got inf (float)"),
    ],
)
def test_a_wrong_number_on_a_schedule_is_refused_as_without_the_compiler(
    cpp_device: torch.device, name: str, wrong: float, words: str
) -> None:
    inputs = inputs_of(cpp_device)

    def loss(a: Tensor, b: Tensor, c: Tensor, d: Tensor, number: float) -> Tensor:
        return functional.dogo_loss((a, b), (c, d), **{name: number}).loss

    with pytest.raises(ValueError, match=re.escape(words)):
        loss(*inputs, wrong)
    for whole, error in ((True, Unsupported), (False, ValueError)):
        torch.compiler.reset()
        compiled = torch.compile(loss, fullgraph=whole, backend="aot_eager")
        for number in (0.5, 0.4, 0.3):
            compiled(*inputs, number)
        with pytest.raises(error, match=re.escape(words)):
            compiled(*inputs, wrong)
        assert torch.equal(compiled(*inputs, 0.2), loss(*inputs, 0.2))


@pytest.mark.parametrize("loss", compiled_losses()[:3], ids=lambda loss: loss.__name__)
def test_a_compiled_graph_is_not_found_again_after_the_layout_of_saved_buffers_changed(
    device: torch.device, loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's cache of compiled graphs goes by the graph: with another layout it must be another graph, or an upgrade
    runs compiled code that expects the buffers of the version before."""

    def graph_of_the_loss() -> str:
        graphs: list[str] = []

        def keep(module: torch.fx.GraphModule, _inputs: object) -> Any:
            graphs.append(module.code)
            return module.forward

        torch.compiler.reset()
        torch.compile(loss, fullgraph=True, backend=keep)(*inputs_of(device))
        assert len(graphs) == 1
        return graphs[0]

    first = graph_of_the_loss()
    assert first == graph_of_the_loss()
    monkeypatch.setattr(core, "_LAYOUT", ":another")
    assert first != graph_of_the_loss()


def test_the_layout_is_that_of_the_files(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("problem.py", "cpp_backend.py", "missing.py")]
    for file in files[:2]:
        file.write_text("PADDING = 128\n")
    before = core._sources(*files)
    files[1].write_text("PADDING = 32\n")
    assert before != core._sources(*files) and len(before) == 12
    folders = [Path(module.__file__).parent for module in (core, configurations)]
    deciding = [file for folder in folders for file in folder.glob("*.py")]
    names = {"core.py", "library.py", "problem.py", "triton_backend.py", "cpp_backend.py", "configurations.py"}
    assert names <= {file.name for file in deciding}
    assert ":" + core._sources(*deciding) == core._LAYOUT
    for file in deciding:
        assert ":" + core._sources(*{*deciding} - {file}) != core._LAYOUT or not file.read_bytes()


def test_no_table_of_tiles_is_read_before_a_kernel_needs_one() -> None:
    code = "import sys, dogo_fast; print('dogo_fast.kernels.configurations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["nt_xent", "similarity_kl", "dogo_loss"])
def test_second_derivative_is_refused_with_a_clear_error(device: torch.device, name: str) -> None:
    """However it is asked for: through the inputs, through a weight on the loss, or beside the loss itself, where a
    gradient penalty would silently count for nothing."""
    a, b, c, d = inputs_of(device)
    weight = torch.tensor(2.0, device=device, requires_grad=True)
    loss = {
        "nt_xent": lambda: functional.nt_xent(a, b),
        "similarity_kl": lambda: functional.similarity_kl((a, b), (c, d)),
        "dogo_loss": lambda: functional.dogo_loss((a, b), (c, d)).loss,
    }[name]
    value = weight * loss()
    (gradient,) = torch.autograd.grad(value, a, create_graph=True)
    penalty = gradient.square().sum()
    refused = pytest.raises(RuntimeError, match=rf"dogo_fast.{name} has no second derivative")
    with refused:
        torch.autograd.grad(value + penalty, a, retain_graph=True)
    with refused:
        torch.autograd.grad(penalty, weight, retain_graph=True)
    with refused:
        (loss() + penalty).backward(inputs=[a])


@pytest.mark.parametrize("name", ["nt_xent", "similarity_kl", "dogo_loss"])
def test_under_activation_checkpointing(device: torch.device, name: str) -> None:
    """Without reentry a saved tensor may be looked at once."""
    inputs = inputs_of(device)
    loss = {
        "nt_xent": lambda a, b, c, d: functional.nt_xent(a, b) + functional.nt_xent(c, d),
        "similarity_kl": lambda a, b, c, d: functional.similarity_kl((a, b), (c, d), detach_teacher=False),
        "dogo_loss": lambda a, b, c, d: functional.dogo_loss((a, b), (c, d)).loss,
    }[name]
    value = torch.utils.checkpoint.checkpoint(loss, *inputs, use_reentrant=False)
    expected = loss(*inputs)
    assert torch.equal(value, expected)
    assert all(map(torch.equal, torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs)))


def test_forward_mode_is_refused_rather_than_zero(device: torch.device) -> None:
    a, b, tangent = projections(10, 16, count=3, device=device)
    with pytest.raises(NotImplementedError, match=r"dogo_fast.nt_xent has no forward-mode derivative"):
        torch.func.jvp(lambda x: functional.nt_xent(x, b), (a,), (tangent,))


def test_inputs_are_never_written(device: torch.device) -> None:
    inputs = inputs_of(device)
    before = [tensor.detach().clone() for tensor in inputs]
    versions = [tensor._version for tensor in inputs]
    functional.dogo_loss((inputs[0], inputs[1]), (inputs[2], inputs[3])).loss.backward()
    assert versions == [tensor._version for tensor in inputs]
    assert all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))


def test_two_runs_give_the_same_bits(device: torch.device) -> None:
    inputs = inputs_of(device, N=70)
    results = []
    for _ in range(2):
        output = functional.dogo_loss((inputs[0], inputs[1]), (inputs[2], inputs[3]))
        results.append([*output, *torch.autograd.grad(output.loss, inputs)])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


class Computations(TorchDispatchMode):
    """ATen calls that would launch a kernel: everything but allocation and views."""

    FREE = (
        "empty",
        "detach",
        "view",
        "select",
        "expand",
        "alias",
        "as_strided",
        "t.",
        "transpose",
        "slice",
        "unsqueeze",
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        if not name.startswith((*self.FREE, "dogo_fast::")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched() -> Iterator[list[str]]:
    names: list[str] = []
    with launches.listening(lambda launch: names.append(launch.name)):
        yield names


@pytest.mark.parametrize("own_rows", [0, 64], ids=["by rows", "by squares"])
@pytest.mark.parametrize(("learnt", "N"), thinned([False, True], [8, 150]))
def test_the_whole_loss_takes_three_launches_forward_and_two_backward(
    triton_device: torch.device, launched: list[str], N: int, learnt: bool, own_rows: int
) -> None:
    """Our own launches, and that PyTorch adds none around them but autograd's seed gradient of one."""
    tile = configurations.Tile(64, 32, 4, 2, own_rows)
    inputs = inputs_of(triton_device, N=N)
    temperature: Any = torch.tensor(0.5, device=triton_device, requires_grad=True) if learnt else 0.5
    tiles = tile_tables.forced(configurations.Configuration(tile, tile))
    with tiles, Computations() as computations:
        output = functional.dogo_loss((inputs[0], inputs[1]), (inputs[2], inputs[3]), temperature, kd_weight=(2, 1))
    assert launched == ["normalize_kernel", "statistics_kernel", "finalize_kernel"]
    assert computations.names == []
    launched.clear()
    wanted = [*inputs, temperature] if learnt else inputs
    seed = torch.ones_like(output.loss)
    tiles = tile_tables.forced(configurations.Configuration(tile, tile))
    with tiles, Computations() as computations:
        torch.autograd.grad(output.loss, wanted, seed)
    second = "temperature_gradient_kernel" if learnt else "finish_kernel"
    assert launched == ["gradient_kernel", second][: 1 + (learnt or own_rows > 0)]
    assert computations.names == []


def test_inside_the_operators_nothing_is_computed_but_by_the_kernels(
    triton_device: torch.device,
) -> None:
    """The same below the dispatcher, where the operators' own code runs (the kernels aside: the interpreter
    computes)."""
    inputs = [tensor.detach() for tensor in inputs_of(triton_device)]
    settings = (None, 0.5, None, 0.1, 1.0, 1.0, "batchmean", "float32", backend())
    with launches.pretending(launches.device_of(triton_device)), Computations() as computations:
        outputs = core.forward(library.DOGO_LOSS, *inputs, *settings)
        upstream = (outputs[0], *[None] * 6)
        core.backward(library.DOGO_LOSS, *upstream, *outputs[7:], *inputs, *settings)
    assert computations.names == []


class Allocations(TorchDispatchMode):
    """Bytes of every tensor made while active, live or not: an upper bound of the peak's growth."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name().startswith("aten::empty"):
            self.bytes += result.nbytes
            self.largest = max(self.largest, result.nbytes)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_at_8192_rows_stays_under_eight_times_the_inputs(
    dtype: torch.dtype,
) -> None:
    """Every buffer of a forward and backward pass, allocated for real and counted; the kernels, whose programs allocate
    nothing, are left out (the interpreter would take hours). N × N would be 256 times the inputs."""
    inputs = [torch.empty(8192, 128, dtype=dtype) for _ in range(4)]
    given = sum(tensor.nbytes for tensor in inputs)
    settings = (None, 0.5, None, 0.1, 1.0, 1.0, "batchmean", "float32", "triton")
    tables = tile_tables.forced(configurations.SHIPPED)
    with launches.pretending(launches.Device("sm_90", 4)), tables, Allocations() as allocations:
        outputs = core.forward(library.DOGO_LOSS, *inputs, *settings)
        core.backward(library.DOGO_LOSS, outputs[0], *[None] * 6, *outputs[7:], *inputs, *settings)
    assert allocations.bytes < 8 * given
    case = compiling.KernelCase("dogo_loss", str(dtype).removeprefix("torch."), 128, 8192, "static")
    listened = compiling.buffer_bytes(compiling.launches(case, "sm_90", multiprocessors=4))
    assert listened == pytest.approx(allocations.bytes, abs=256)  # values and upstream gradients: some numbers
    assert allocations.largest < 8192 * 8192


def test_autocast_multiplies_in_its_dtype_and_keeps_float32_gradients(device: torch.device) -> None:
    inputs = inputs_of(device, N=40)
    arguments = ((inputs[0], inputs[1]), (inputs[2], inputs[3]))
    exact = functional.dogo_loss(*arguments).loss
    narrow = functional.dogo_loss(*((a.bfloat16(), b.bfloat16()) for a, b in arguments)).loss
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value = functional.dogo_loss(*arguments).loss
    assert value.dtype == torch.float32
    assert value != exact or (
        backend() == "cpp" and not cpp_backend.fast_bfloat16()
    )  # where 16-bit products are no faster
    assert abs(value - exact) <= 2 * abs(narrow - exact) + 1e-3
    gradients = torch.autograd.grad(value, inputs)
    expected = torch.autograd.grad(exact, inputs)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 2**-6 * theirs.norm()


def test_the_reference_stays_exact_under_autocast() -> None:
    a, b = projections(40, 16)
    expected = functional.nt_xent(a, b, 0.1, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = functional.nt_xent(a, b, 0.1, backend="reference")
    assert value == expected and value.dtype == torch.float32


@pytest.mark.parametrize(("precision", "expected"), [("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")])
def test_float32_products_follow_the_matmul_precision(
    triton_device: torch.device, precision: str, expected: str
) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        a, b = inputs_of(triton_device, count=2)
        with launches.recorded() as recorded:
            functional.nt_xent(a, b).backward()
    finally:
        torch.set_float32_matmul_precision(before)
    seen = [each.values["PRECISION"] for each in recorded if "PRECISION" in each.values]
    assert seen == [expected, expected]


def test_only_the_inputs_that_need_one_get_a_gradient(device: torch.device) -> None:
    a, b, c, d = projections(10, 16, count=4, device=device)
    a.requires_grad_()
    functional.dogo_loss((a, b), (c, d)).loss.backward()
    assert a.grad is not None and b.grad is None and c.grad is None


def test_vmap_gives_the_loss_of_each_slice(device: torch.device) -> None:
    """There is no batching rule; PyTorch's fallback calls the operator for every slice."""
    stacked = torch.randn(3, 10, 16, device=device)
    values = torch.vmap(lambda x: functional.nt_xent(x, x.flip(0)))(stacked)
    expected = torch.stack([functional.nt_xent(x, x.flip(0)) for x in stacked])
    assert torch.equal(values, expected)


@triton.jit
def copy_rows(p_rows, p_out, i_first, WIDTH: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    i_rows = tl.arange(0, ROWS)
    b_tile = tiles.load_tile(p_rows, i_first + i_rows, 0, WIDTH, WIDTH)
    tl.store(p_out + i_rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], b_tile)


def test_row_offsets_past_two_to_the_31(triton_device: torch.device) -> None:
    """A buffer of more than 2³¹ numbers (pages that nobody touches cost nothing on a CPU); its last rows are read
    back."""
    rows, width = 2**24 + 16, 128
    buffer = torch.empty(rows * width, dtype=torch.float16, device=triton_device)
    expected = torch.randn(16, width, device=triton_device).half()
    buffer[-16 * width :] = expected.flatten()
    out = torch.empty_like(expected)
    copy_rows[(1,)](buffer, out, rows - 16, WIDTH=width, ROWS=16)
    assert buffer.numel() > 2**31 and torch.equal(out, expected)
