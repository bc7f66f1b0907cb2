"""Says what is installed (not the developers' reports); compiles ``csrc`` where torch can be imported.

In pip's build isolation it cannot: then, and where compiling fails, the wheel has the sources alone and runs anywhere;
the first use of the library compiles them. Everything else is in pyproject.toml.
"""

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Command, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


def load_extension_module() -> ModuleType:
    """dogo_fast/ops/extension.py, which knows how to compile, without the package, which needs torch."""
    spec = importlib.util.spec_from_file_location("dogo_fast_extension", Path("dogo_fast", "ops", "extension.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Wheel(bdist_wheel):
    """Names the wheel for every Python 3: the libraries know nothing of Python, only of the processor."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class BuildSources(build_py):
    """Forgets what an earlier build left: files that are gone from the checkout would be installed."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "dogo_fast"), ignore_errors=True)
        super().run()


def compiled_ahead() -> dict[str, Any]:
    """The options of ``setup`` that compile the sources; none, and one line printed, where that is not possible."""
    extension = load_extension_module()
    try:
        compiler, ninja = extension.find_compiler(), extension.find_ninja()
        cpp_extension = extension.import_cpp_extension()
        names = {variant: Path(extension.library_name(variant)).stem for variant in extension.variants()}
    except Exception as error:  # torch is missing, or broken, or the tools are missing: not needed to install
        print(f"dogo_fast: the C++ kernels will be compiled on first use, not now ({error})")
        return {}
    os.environ["CXX"] = " ".join(compiler)
    os.environ["PATH"] = os.pathsep.join([str(Path(ninja).parent), os.environ.get("PATH", os.defpath)])
    threads = extension.understands_threads(compiler)
    here = Path.cwd()
    libraries = [
        cpp_extension.CppExtension(
            f"dogo_fast._extension.{name}",
            sources=[os.path.relpath(path, here) for path in extension.sources()],
            depends=[os.path.relpath(path, here) for path in extension.SOURCES.glob("*.h")],
            # The last two are for what Python was compiled with: debugging information, and warnings about headers.
            extra_compile_args=[*extension.compile_flags(variant, threads=threads), "-g0", "-w"],
            extra_link_args=extension.link_flags(),
            py_limited_api=True,  # no Python at all: not linked with torch's Python library
        )
        for variant, name in names.items()
    ]

    class BuildLibraries(cpp_extension.BuildExtension):
        """Compiles all variants, or none."""

        def run(self) -> None:
            made = Path(self.build_lib, "dogo_fast", "_extension")
            if self.inplace:
                shutil.rmtree(extension.PREBUILT, ignore_errors=True)
                extension.PREBUILT.mkdir()
            try:
                super().run()
            except Exception as error:
                reason = str(error).strip().splitlines()[:1]
                print(f"dogo_fast: the C++ kernels will be compiled on first use, not now ({' '.join(reason)})")
                shutil.rmtree(made, ignore_errors=True)
                self.extensions = self.distribution.ext_modules = []
                wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
                if wheel is not None:
                    wheel.root_is_pure = True

        def build_extension(self, library: Any) -> None:
            # The variants have the same sources: each has its own folder for the objects made of them.
            together, self.build_temp = self.build_temp, str(Path(self.build_temp, library.name))
            try:
                super().build_extension(library)
            finally:
                self.build_temp = together

    commands: dict[str, type[Command]] = {
        "build_ext": BuildLibraries.with_options(use_ninja=True, no_python_abi_suffix=True)
    }
    return {"ext_modules": libraries, "cmdclass": commands}


compiled = compiled_ahead()

setup(
    # kernels, csrc and bench are links in the package to the folders beside it: packages like any other.
    packages=find_packages(include=["dogo_fast", "dogo_fast.*"], exclude=["dogo_fast.bench.reports"]),
    ext_modules=compiled.get("ext_modules", []),
    cmdclass={"bdist_wheel": Wheel, "build_py": BuildSources, **compiled.get("cmdclass", {})},
)
