"""The public interface: what comes back, what is refused and how the refusal reads, which backend runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numerics import projections
from torch import nn

import dogo_fast
from dogo_fast import DoGoLoss, DoGoLossOutput, NTXentLoss, SimilarityKLLoss, SimSiamLoss, functional, losses, reference
from dogo_fast.ops.backend import resolve_backend

A, B, C, D = projections(6, 8, count=4)
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "views differ": (lambda: functional.nt_xent(A, B[:5]), ValueError, r"a and b .*same shape.*\(6, 8\) and \(5, 8\)"),
    "one image": (lambda: functional.nt_xent(A[:1], B[:1]), ValueError, r"a must have at least 2 rows.*N = 1"),
    "integers": (lambda: functional.nt_xent(A.long(), B), TypeError, r"a must be float32, .*torch.int64"),
    "a list": (lambda: functional.nt_xent([1.0], B), TypeError, r"a must be a torch.Tensor .*got \[1.0\] \(list\)"),  # type: ignore[arg-type]
    "one dimension": (lambda: functional.nt_xent(A[0], B), ValueError, r"a must have shape \[N, D\].*\(8,\)"),
    "no columns": (lambda: functional.nt_xent(A[:, :0], B[:, :0]), ValueError, r"a must have shape \[N, D\]"),
    "dtypes in a pair": (lambda: functional.nt_xent(A, B.half()), TypeError, r"a and b .*same dtype.*float32.*float16"),
    "devices": (lambda: functional.nt_xent(A, B.to("meta")), ValueError, r"a and b .*same device, got cpu and meta"),
    "temperature 0": (lambda: functional.nt_xent(A, B, 0), ValueError, r"temperature must be .* above 0, got 0"),
    "temperature NaN": (lambda: functional.nt_xent(A, B, float("nan")), ValueError, r"temperature must be finite"),
    "temperature inf": (lambda: functional.nt_xent(A, B, float("inf")), ValueError, r"temperature must be finite"),
    "temperature text": (
        lambda: functional.nt_xent(A, B, "0.5"),
        TypeError,
        r"temperature must be a number, got '0.5'",
    ),  # type: ignore[arg-type]
    "temperature vector": (lambda: functional.nt_xent(A, B, torch.ones(2)), ValueError, r"temperature must .*0-d"),
    "temperature integer tensor": (
        lambda: functional.nt_xent(A, B, torch.tensor(1)),
        ValueError,
        r"temperature must .*floating",
    ),
    "temperature elsewhere": (
        lambda: functional.nt_xent(A, B, torch.ones((), device="meta")),
        ValueError,
        r"temperature must be on the inputs' device cpu.*meta",
    ),
    "reduction": (
        lambda: functional.nt_xent(A, B, reduction="average"),
        ValueError,
        r"reduction must be one of 'mean', 'sum', 'none', got 'average'",
    ),
    "backend": (lambda: functional.nt_xent(A, B, backend="cuda"), ValueError, r"backend must be one of 'auto'.*'cuda'"),
    "triton in float64": (
        lambda: functional.nt_xent(A.double(), B.double(), backend="triton"),
        TypeError,
        r"backend='triton' takes float32, .*float64",
    ),
    "cpp elsewhere": (
        lambda: functional.nt_xent(A.to("meta"), B.to("meta"), backend="cpp"),
        ValueError,
        r"backend='cpp' needs tensors on the CPU, got meta",
    ),
    "not a pair": (
        lambda: functional.similarity_kl(A, (C, D)),  # type: ignore[arg-type]
        TypeError,
        r"student must be a pair \(queries, keys\) of tensors, got a Tensor",
    ),
    "three": (
        lambda: functional.similarity_kl((A, B), (C, D, A)),  # type: ignore[arg-type]
        TypeError,
        r"teacher must be a pair .*got a tuple of length 3",
    ),
    "widths": (
        lambda: functional.similarity_kl((A, B[:, :4]), (C, D)),
        ValueError,
        r"student queries and student keys must have the same width.*\(6, 8\) and \(6, 4\)",
    ),
    "queries": (
        lambda: functional.similarity_kl((A[:4], B), (C, D)),
        ValueError,
        r"student and teacher must have the same number of queries, got 4 and 6",
    ),
    "keys": (
        lambda: functional.similarity_kl((A, B), (C, D[:3])),
        ValueError,
        r"same number of keys, got 6 and 3",
    ),
    "sparse": (lambda: functional.nt_xent(A.to_sparse(), B), TypeError, r"a must be a dense tensor, .*sparse_coo"),
    "too small a temperature": (
        lambda: functional.nt_xent(A, B, 1e-40),
        ValueError,
        r"temperature must be at least 1e-30, got 1e-40",
    ),
    "too large a temperature": (lambda: functional.nt_xent(A, B, 10**400), ValueError, r"temperature must be finite"),
    "detach": (
        lambda: functional.similarity_kl((A, B), (C, D), detach_teacher="no"),  # type: ignore[arg-type]
        TypeError,
        r"detach_teacher must be True or False, got 'no'",
    ),
    "learnt, but no parameter": (
        lambda: NTXentLoss(torch.tensor(0.5, requires_grad=True)),
        ValueError,
        r"temperature must be .*nn.Parameter",
    ),
    "teacher temperature": (
        lambda: functional.similarity_kl((A, B), (C, D), teacher_temperature=-1),
        ValueError,
        r"teacher_temperature must be .* above 0, got -1",
    ),
    "batch sizes": (
        lambda: functional.dogo_loss((A, B), (C[:4], D[:4])),
        ValueError,
        r"peer_1 and peer_2 must have the same batch size N, got 6 and 4",
    ),
    "peer devices": (
        lambda: functional.dogo_loss((A, B), (C.to("meta"), D.to("meta"))),
        ValueError,
        r"peer_1 and peer_2 must be on the same device, got cpu and meta",
    ),
    "weights": (
        lambda: functional.dogo_loss((A, B), (C, D), kd_weight=(1, 2, 3)),  # type: ignore[arg-type]
        ValueError,
        r"kd_weight must be a number or a pair.*\(1, 2, 3\)",
    ),
    "weight": (
        lambda: functional.dogo_loss((A, B), (C, D), kd_weight=(1, float("nan"))),
        ValueError,
        r"kd_weight\[1\] must be finite, got nan",
    ),
    "no rows for the whole loss": (
        lambda: functional.dogo_loss((A, B), (C, D), kl_reduction="none"),
        ValueError,
        r"kl_reduction must be one of 'batchmean', 'mean', 'sum', got 'none'",
    ),
    "simsiam": (lambda: functional.simsiam(A, B, C, D[:, :3]), ValueError, r"p_b must have the shape of z_a, \(6, 8\)"),
    "at construction": (lambda: DoGoLoss(0.5, 0), ValueError, r"kd_temperature must be .*above 0, got 0"),
    "reduction at construction": (lambda: SimilarityKLLoss(reduction="all"), ValueError, r"reduction must be one of"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_error_that_names_argument_value_and_what_is_allowed(mistake: str) -> None:
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.gpu
def test_cpu_mixed_with_cuda_is_refused() -> None:
    with pytest.raises(ValueError, match="a and b must be on the same device, got cuda:0 and cpu"):
        functional.nt_xent(A.cuda(), B)


def test_triton_without_a_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"backend='triton' needs tensors on a GPU, got cpu: use 'auto', or"):
        functional.nt_xent(A, B, backend="triton")


def test_modules_compute_what_the_functions_do() -> None:
    pairs = (A, B), (C, D)
    assert torch.equal(NTXentLoss(0.3, reduction="none")(A, B), functional.nt_xent(A, B, 0.3, reduction="none"))
    kl = SimilarityKLLoss(0.2, teacher_temperature=0.4, reduction="mean", detach_teacher=False)
    expected = functional.similarity_kl(*pairs, 0.2, teacher_temperature=0.4, reduction="mean", detach_teacher=False)
    assert torch.equal(kl(*pairs), expected)
    ours = DoGoLoss(0.3, 0.2, kd_weight=(3, 0.5), kl_reduction="sum")(*pairs)
    theirs = functional.dogo_loss(*pairs, 0.3, 0.2, kd_weight=(3, 0.5), kl_reduction="sum")
    assert isinstance(ours, DoGoLossOutput) and all(map(torch.equal, ours, theirs))
    assert torch.equal(SimSiamLoss()(A, B, C, D), reference.simsiam(A, B, C, D))


def test_loss_is_the_sum_of_both_and_each_the_weighted_sum_of_its_parts() -> None:
    output = functional.dogo_loss((A, B), (C, D), kd_weight=(3, 0.5))
    torch.testing.assert_close(output.loss, output.loss_1 + output.loss_2)
    torch.testing.assert_close(output.loss_1, output.nt_xent_1 + 3 * output.kl_1)
    torch.testing.assert_close(output.loss_2, output.nt_xent_2 + 0.5 * output.kl_2)


def test_a_learnable_temperature_is_a_parameter_and_a_constant_one_moves_with_the_module() -> None:
    learnable = NTXentLoss(nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in learnable.named_parameters()] == ["temperature"]
    learnable(A, B).backward()
    assert learnable.temperature.grad is not None  # type: ignore[union-attr]
    constant = DoGoLoss(torch.tensor(0.5), torch.tensor(0.1)).to("meta")
    assert constant.temperature.device.type == "meta"  # type: ignore[union-attr]
    assert "learnable" in repr(learnable) and "kd_weight=1.0" in repr(constant)


def test_sixteen_bit_inputs_give_float32_losses_and_their_own_gradients() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        a, b = (tensor.to(dtype).requires_grad_() for tensor in (A, B))
        loss = functional.nt_xent(a, b)
        loss.backward()
        assert loss.dtype == torch.float32 and a.grad is not None and a.grad.dtype == dtype
    assert functional.nt_xent(A.double(), B.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "expected"), [("reference", "reference"), ("triton", "triton"), ("cpp", "cpp"), ("auto", "cpp")]
)
def test_the_environment_variable_decides_where_auto_would(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    monkeypatch.setenv("DOGO_FAST_BACKEND", value)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_backend("auto", (A,)) == expected
    assert resolve_backend("reference", (A,)) == "reference"


def test_an_empty_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOGO_FAST_BACKEND", "")
    assert resolve_backend("auto", (A,)) == "cpp"
    assert resolve_backend("auto", (A.double(),)) == "cpp"


def test_the_environment_variable_is_named_where_it_is_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOGO_FAST_BACKEND", "triton")
    with pytest.raises(TypeError, match=r"the environment's DOGO_FAST_BACKEND=triton takes float32"):
        functional.nt_xent(A.double(), B.double())


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOGO_FAST_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"environment variable DOGO_FAST_BACKEND must be one of .auto.*got .fast."):
        functional.nt_xent(A, B)


def test_nan_gives_nan_and_a_zero_row_does_not() -> None:
    bad, zero = A.clone(), A.clone()
    bad[1, 2], zero[1] = float("nan"), 0
    assert functional.nt_xent(bad, B).isnan()
    assert functional.nt_xent(zero, B).isfinite()
    assert functional.nt_xent(zero.half(), B.half()).isfinite()


def test_the_losses_need_nothing_of_the_trainer_nor_compile_anything_at_import() -> None:
    program = (
        "import sys, dogo_fast, torch\n"
        "x = torch.randn(4, 8)\n"
        "dogo_fast.DoGoLoss()((x, x), (x, x))\n"
        "extras = {'torchvision', 'pydantic', 'safetensors', 'sklearn'} & set(sys.modules)\n"
        "assert not extras, extras\n"
        "assert 'dogo_fast.kernels.dogo_forward' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_checkout_works_without_being_installed(tmp_path: Path) -> None:
    """Python's -S -I would hide torch too; so: the checkout first on the path, from another directory."""
    root = Path(dogo_fast.__file__).parent.parent
    program = "import dogo_fast.kernels.tiles as t, dogo_fast; print(t.__file__)"
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()).name == "tiles.py"


def test_numbers_of_numpy_and_meta_tensors_are_taken() -> None:
    assert functional.nt_xent(A, B, np.float32(0.5)) == functional.nt_xent(A, B, 0.5)  # type: ignore[arg-type]
    assert functional.nt_xent(A.to("meta"), B.to("meta")).shape == ()
    assert functional.nt_xent(A, B, torch.tensor(torch.inf)).isnan()


def test_public_names_are_what_the_modules_define_and_no_more() -> None:
    """A class that is added to losses.py and forgotten, or a name that is not there, fails."""
    modules = {
        name for name, each in vars(losses).items() if isinstance(each, type) and each.__module__ == losses.__name__
    }
    assert set(dogo_fast.__all__) == {*modules, "CohortLossOutput", "DoGoLossOutput", "__version__"}
    assert all(getattr(dogo_fast, name) is getattr(losses, name) for name in modules)
    functions = {
        name for name, each in vars(functional).items() if each.__class__.__name__ == "function" and name[0] != "_"
    }
    assert set(functional.__all__) == {
        *functions - {"resolve_backend"},
        "BACKENDS",
        "CohortLossOutput",
        "DoGoLossOutput",
    }


def test_a_teacher_that_may_be_detached_is_a_flag_when_the_module_is_built() -> None:
    with pytest.raises(TypeError, match=r"detach_teacher must be True or False, got 1 \(int\)"):
        SimilarityKLLoss(detach_teacher=1)  # type: ignore[arg-type]
