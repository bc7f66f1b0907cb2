"""Each name of torch that is not public, as it was seen in torch 2.14.1: what it does, and that nobody else
uses one."""

import ast
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import dogo_fast
from dogo_fast import private

SEEN = "seen in torch 2.14.1"
ROOT = Path(dogo_fast.__file__).parent
FOLDERS = [ROOT, *(ROOT / name for name in ("kernels", "bench"))]  # links are not followed


@pytest.fixture
def scaler() -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    return scaler


def test_functions_of_many_tensors() -> None:
    first, second = [torch.tensor([3.0, -4.0])], [torch.tensor([1.0, 2.0])]
    assert private.foreach_norm(first)[0] == 5 and private.foreach_norm(first, torch.inf)[0] == 4, SEEN
    assert private.foreach_mul(first, 2.0)[0].tolist() == [6, -8], SEEN
    private.foreach_add_(first, second, alpha=2.0)
    assert first[0].tolist() == [5, 0], SEEN
    private.foreach_mul_(first, torch.tensor(3.0))
    private.foreach_div_(first, torch.tensor(5.0))
    assert first[0].tolist() == [3, 0], SEEN
    private.foreach_copy_(first, second)
    assert first[0].tolist() == [1, 2], SEEN


def test_an_optimiser_that_scales_itself_is_given_the_scale(scaler: torch.amp.GradScaler) -> None:
    class Noting(private.ScalesItself, torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.got = self.grad_scale, self.found_inf  # type: ignore[attr-defined]

    weight = torch.nn.Parameter(torch.ones(()))
    weight.grad = torch.tensor(torch.inf)
    optimiser = Noting([weight], lr=1.0)
    scaler.step(optimiser)
    assert [float(each) for each in optimiser.got] == [8, 1], SEEN


def test_what_a_scaler_changes(scaler: torch.amp.GradScaler) -> None:
    scale, growth = private.scaler_tensors(scaler)
    scale.fill_(4.0)
    growth.fill_(3)
    assert scaler.get_scale() == 4 and scaler.state_dict()["_growth_tracker"] == 3, SEEN


def test_an_abandoned_step_can_begin_again(scaler: torch.amp.GradScaler) -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    weight.grad = torch.ones(())
    optimiser = torch.optim.SGD([weight], lr=1.0)
    scaler.unscale_(optimiser)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimiser)
    private.abandon_step(scaler)
    scaler.unscale_(optimiser)
    assert weight.grad == 1 / 64, SEEN


def test_a_marked_function_is_a_constant_to_the_compiler() -> None:
    def seven() -> int:
        print(end="")  # would break the graph
        return calls.append(7) or 7

    calls: list[int] = []
    private.constant_to_compile(seven)
    twice = torch.compile(lambda x: x * seven(), fullgraph=True, backend="eager")
    assert [int(twice(torch.tensor(n))) for n in (2, 3)] == [14, 21] and calls == [7], SEEN


def test_a_number_that_was_seen_to_change_is_no_constant_to_the_compiler() -> None:
    def compiler(_module: torch.fx.GraphModule, _inputs: object) -> Any:
        return lambda *inputs: inputs[:1]

    def told(x: torch.Tensor, number: float) -> tuple[torch.Tensor, bool]:
        return x + number, private.is_constant(number)

    compiled = torch.compile(told, fullgraph=True, backend=compiler)
    said = [compiled(torch.ones(()), number)[1] for number in (0.5, 0.25, 0.125)]
    assert said == [True, False, False], SEEN


def test_only_tensors_of_a_tree_are_mapped() -> None:
    tree = {"a": [torch.ones(()), 2], "b": (3.0, None)}
    assert private.tree_map_only(torch.Tensor, lambda x: x + 1, tree) == {"a": [2, 2], "b": (3.0, None)}, SEEN


def test_workers_that_are_forgotten_may_die() -> None:
    """Else torch's handler of SIGCHLD raises wherever the process is."""
    iterator: Any = iter(DataLoader(list(range(8)), num_workers=1))
    assert iterator._worker_pids_set, SEEN
    private.forget_workers(iterator)
    for worker in iterator._workers:
        worker.kill()
        worker.join()
    torch.utils.data._utils.signal_handling._error_if_any_worker_fails()
    assert not iterator._worker_pids_set, SEEN


def test_workers_that_ignore_sigterm_are_ended() -> None:
    iterator: Any = iter(DataLoader(list(range(80)), num_workers=2, worker_init_fn=_ignore_sigterm))
    workers = list(iterator._workers)
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers), SEEN
    private.end_workers(iterator)
    private.end_workers(iterator)
    assert not any(worker.is_alive() for worker in workers), SEEN


def _ignore_sigterm(_: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in FOLDERS for path in folder.rglob("*.py")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_other_module_names_what_is_private_in_torch(path: Path) -> None:
    if path.name == "private.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            chain = ast.unparse(node)
            assert not chain.startswith("torch."), f"{path}:{node.lineno}: {chain}"
            assert "scaler." not in chain, f"{path}:{node.lineno}: {chain}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [*(node.module or "").split("."), *(each.name for each in node.names)]
            assert not any(name.startswith("_") for name in names), f"{path}:{node.lineno}: {names}"
