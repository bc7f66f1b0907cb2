"""The house: every module has one name, whether the package is run from a checkout or installed."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dogo_fast

ROOT = Path(__file__).resolve().parent.parent
GIVEN = ("bench", "csrc", "kernels")


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with the checkout alone beside what is installed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["setup", "tests", "tests.numerics", "dogo_fast", "Makefile"])
def test_nothing_beside_the_package_is_in_it(name: str, tmp_path: Path) -> None:
    done = run(f"import dogo_fast.{name}", tmp_path)
    assert f"No module named 'dogo_fast.{name.partition('.')[0]}'" in done.stderr


@pytest.mark.parametrize("name", ["bench", "kernels", "bench.records", "kernels.tiles"])
def test_a_folder_at_the_top_has_no_second_name(name: str) -> None:
    done = run(f"import {name}", ROOT)
    package = name.partition(".")[0]
    assert f"ImportError: {package} must be imported as dogo_fast.{package}" in done.stderr


def test_the_given_folders_are_the_package_s_own() -> None:
    for name in GIVEN:
        assert (Path(dogo_fast.__file__).parent / name).samefile(ROOT / name)
        assert not (ROOT / name).is_symlink()


def test_there_is_one_class_behind_a_name() -> None:
    """Two modules of one file would have two of each."""
    files: dict[str, str] = {}
    packages = [ROOT / "dogo_fast", *(ROOT / name for name in GIVEN)]
    modules = [path for folder in packages for path in folder.rglob("*.py") if not path.name.startswith("test_")]
    for path in {path.resolve() for path in modules} - {(ROOT / "bench" / "conftest.py").resolve()}:
        inside = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(inside if inside[0] == "dogo_fast" else ("dogo_fast", *inside)).removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and ROOT in Path(file).resolve().parents and name.partition(".")[0] in ("dogo_fast", *GIVEN):
            assert files.setdefault(str(Path(file).resolve()), name) == name
    assert len(files) > 60


def test_no_function_has_more_than_twelve_parameters() -> None:
    """What belongs together is a struct."""
    for folder in (ROOT / "dogo_fast", *(ROOT / name for name in GIVEN)):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                    names = [each.arg for each in parameters if each.arg != "self"]
                    assert len(names) <= 12, f"{path}: {node.name} has {len(names)} parameters"
