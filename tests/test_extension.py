"""How the C++ kernels get compiled, cached, found and replaced; what happens where they cannot be had.

A stub stands in for the compiler, which copies the library that these tests' process has loaded: what is tested is not
the compiler, and half a minute each would add up.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from dogo_fast.ops import extension

ROOT = Path(extension.__file__).parents[2]

STUB = """#!{python}
import shutil, sys
arguments = sys.argv[1:]
if "--version" in arguments:
    print("g++ (a stub) 13.0")
elif "-shared" in arguments:
    with open({log!r}, "a") as log:
        log.write("linked\\n")
    shutil.copy({library!r}, arguments[arguments.index("-o") + 1])
else:
    open(arguments[arguments.index("-o") + 1], "w").close()
"""

PROGRAM = """
import sys, torch, dogo_fast
from dogo_fast import functional, reference
a, b = torch.randn(20, 8), torch.randn(20, 8)
value = functional.nt_xent(a, b)
functional.nt_xent(a, b)
torch.testing.assert_close(value, reference.nt_xent(a, b))
from dogo_fast.ops.backend import resolve_backend
print(resolve_backend("auto", (a,)))
"""


class Place:
    """A machine as a first use finds it: an empty cache, a compiler."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.links = folder / "links.txt"
        self.compiler = folder / "g++"
        self.compiler.write_text(STUB.format(python=sys.executable, log=str(self.links), library=str(library)))
        self.compiler.chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DOGO_FAST_")},
            "DOGO_FAST_CACHE": str(self.cache),
            "CXX": str(self.compiler),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, program: str = PROGRAM) -> "subprocess.Popen[str]":
        options = {"cwd": self.folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", program], env=self.environment, **options)  # type: ignore[call-overload, no-any-return]

    def run(self, program: str = PROGRAM) -> tuple[str, str]:
        """What a process that succeeds says on stdout, and on stderr."""
        process = self.start(program)
        out, error = process.communicate()
        assert process.returncode == 0, error
        return out.strip(), error

    def compilations(self) -> int:
        return len(self.links.read_text().splitlines()) if self.links.exists() else 0

    def libraries(self) -> list[Path]:
        return list(self.cache.glob("*.so"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    extension.load()
    name = extension.library_name(extension.variant())
    found = [path for path in (extension.PREBUILT / name, extension.cache_folder() / name) if path.is_file()]
    return Place(tmp_path, found[0])


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout may hold libraries compiled ahead (``setup.py build_ext --inplace``), found before the cache."""
    if extension.PREBUILT.exists():
        pytest.skip(f"{extension.PREBUILT} exists: remove it to test the first use")


@pytest.mark.usefixtures("unbuilt")
def test_the_first_use_compiles_once_with_one_line_and_the_next_process_is_silent(place: Place) -> None:
    out, error = place.run()
    assert out == "cpp" and place.compilations() == 1
    assert len(re.findall(r"^dogo_fast: compiling the CPU kernels once .*, into .*cache$", error, re.MULTILINE)) == 1
    out, error = place.run()
    assert out == "cpp" and "compiling" not in error and place.compilations() == 1
    assert [path.suffix for path in sorted(place.cache.iterdir())] == [".so", ""]  # the library, and the lock


@pytest.mark.usefixtures("unbuilt")
def test_processes_that_start_at_once_compile_once(place: Place) -> None:
    processes = [place.start() for _ in range(4)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert [out.strip() for out, _ in said] == ["cpp"] * 4
    assert place.compilations() == 1 and sum("compiling" in error for _, error in said) == 1


@pytest.mark.usefixtures("unbuilt")
def test_without_a_compiler_it_says_so_once_and_computes_by_the_reference(place: Place) -> None:
    place.environment["CXX"] = "/nowhere/g++"
    out, error = place.run()
    assert out == "reference"
    warning = r"dogo_fast: there is no C\+\+ compiler .*CXX=/nowhere/g\+\+.*correct CXX, or unset it; the dense"
    assert len(re.findall(warning, error)) == 1


@pytest.mark.usefixtures("unbuilt")
def test_asked_for_by_name_it_is_an_error_that_says_what_to_do(place: Place) -> None:
    place.environment["CXX"] = "/nowhere/g++"
    process = place.start("import torch\nfrom dogo_fast import functional\nx = torch.ones(4, 4)\n"
                          "functional.nt_xent(x, x, backend='cpp')\n")  # fmt: skip
    _, error = process.communicate()
    assert process.returncode == 1
    assert "ExtensionError: there is no C++ compiler" in error and "correct CXX" in error.splitlines()[-1]


@pytest.mark.usefixtures("unbuilt")
def test_a_compiler_that_fails_is_quoted_and_its_log_kept(place: Place) -> None:
    place.compiler.write_text("#!/bin/sh\necho 'x.cpp:1:1: error: no such header' >&2\nexit 1\n")
    out, error = place.run()
    assert out == "reference" and error.count("the dense formulas") == 1
    assert "compiling the C++ kernels failed: x.cpp:1:1: error: no such header" in error
    logs = list(place.cache.glob("*.log"))
    assert len(logs) == 1 and "no such header" in logs[0].read_text() and not place.libraries()


@pytest.mark.usefixtures("unbuilt")
def test_a_library_that_was_cut_off_is_replaced(place: Place) -> None:
    place.run()
    (library,) = place.libraries()
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    out, _ = place.run()
    assert out == "cpp" and place.compilations() == 2
    assert library.read_bytes() == whole


@pytest.mark.usefixtures("unbuilt")
def test_a_library_that_is_another_is_replaced(place: Place) -> None:
    place.run()
    (library,) = place.libraries()
    whole = library.read_bytes()
    (other,) = {path for path in Path(torch.__file__).parent.glob("lib/libcaffe2_nvrtc.so")} or {None}
    if other is None:
        pytest.skip("this build of torch carries no small library that could stand in for another")
    library.write_bytes(other.read_bytes())
    out, _ = place.run()
    assert out == "cpp" and place.compilations() == 2 and library.read_bytes() == whole


@pytest.mark.usefixtures("unbuilt")
def test_a_compiler_command_that_cannot_be_read_is_quoted(place: Place) -> None:
    place.environment["CXX"] = 'g++ "'
    out, error = place.run()
    assert out == "reference" and 'CXX=g++ " of the environment is no command (No closing quotation)' in error


@pytest.mark.usefixtures("unbuilt")
def test_a_cache_that_cannot_be_written_is_named(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place.environment["DOGO_FAST_CACHE"] = str(tmp_path / "file" / "cache")
    out, error = place.run()
    assert out == "reference" and "set DOGO_FAST_CACHE to another folder" in error


@pytest.mark.usefixtures("unbuilt")
def test_it_is_compiled_while_torch_compile_traces(place: Place) -> None:
    program = (
        "import torch\nfrom dogo_fast import DoGoLoss\n"
        "x = [torch.randn(8, 4) for _ in range(4)]\n"
        "loss = lambda *x: DoGoLoss()(x[:2], x[2:]).loss\n"
        "torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend='aot_eager')(*x), loss(*x))\n"
    )
    _, error = place.run(program)
    assert "compiling the CPU kernels" in error and place.compilations() == 1


def test_another_torch_other_flags_and_other_sources_are_other_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {extension.library_name("default"), extension.library_name("avx2")}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.99.0")
        names.add(extension.library_name("default"))
    with monkeypatch.context() as patch:
        patch.setenv(extension.SANITIZE_VARIABLE, "address")
        names.add(extension.library_name("default"))
    for path in extension.SOURCES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(extension, "SOURCES", tmp_path)
        assert extension.library_name("default") in names
        with open(tmp_path / "exp2.h", "a") as header:
            header.write("// changed\n")
        names.add(extension.library_name("default"))
    assert len(names) == 5


def build_wheel(place: Place, folder: Path, **environment: str) -> Path:
    """As ``pip install .`` makes it, from a copy without what is ignored, beside what an earlier build left."""
    source = folder / "source"
    left_over = source / "build" / "lib" / "dogo_fast" / "csrc" / "renamed_since.cpp"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("#error an old source is compiled\n")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    for name in files.stdout.decode().splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)  # the package's links to the folders beside it
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, "."]
    variables = place.environment | environment
    done = subprocess.run(command, cwd=source, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path, place: Place) -> None:
    """Unpack a wheel and make the programs that run in the place find it."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("dogo_fast/csrc/")}
        assert names == {f"dogo_fast/csrc/{path.name}" for path in (ROOT / "csrc").iterdir()}
        assert {"dogo_fast/kernels/tiles.json", "dogo_fast/bench/records.py"} <= set(archive.namelist())
        beside = [name for name in archive.namelist() if not name.startswith(("dogo_fast/", "dogo_fast-"))]
        assert beside == [] and not any("reports" in name or "results" in name for name in archive.namelist())
        archive.extractall(folder)
    place.environment["PYTHONPATH"] = str(folder)


def test_a_wheel_built_beside_torch_has_every_variant_and_needs_no_compiler(place: Place, tmp_path: Path) -> None:
    wheel = build_wheel(place, tmp_path)
    assert re.fullmatch(r"dogo_fast-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    install(wheel, tmp_path / "site", place)
    built = sorted(path.name for path in (tmp_path / "site" / "dogo_fast" / "_extension").iterdir())
    assert built == sorted(extension.library_name(variant) for variant in extension.variants())
    place.environment["CXX"] = "/nowhere/g++"
    out, error = place.run()
    assert out == "cpp" and "compiling" not in error and not place.cache.exists()


def test_a_wheel_built_in_isolation_holds_the_sources_and_compiles_on_first_use(place: Place, tmp_path: Path) -> None:
    """In pip's build environment there is no torch."""
    (tmp_path / "isolated").mkdir()
    (tmp_path / "isolated" / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    wheel = build_wheel(place, tmp_path, PYTHONPATH=str(tmp_path / "isolated"))
    assert re.fullmatch(r"dogo_fast-[\d.]+-py3-none-any\.whl", wheel.name)
    install(wheel, tmp_path / "site", place)
    assert not (tmp_path / "site" / "dogo_fast" / "_extension").exists()
    out, error = place.run("import dogo_fast\nprint(dogo_fast.__file__)\n" + PROGRAM)
    assert out.splitlines() == [str(tmp_path / "site" / "dogo_fast" / "__init__.py"), "cpp"]
    assert "compiling the CPU kernels" in error and place.compilations() == 1
