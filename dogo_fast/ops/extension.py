"""The C++ kernels for the CPU: where their sources and compiled libraries lie, and how the right library gets loaded.

The sources in ``csrc`` make one plain shared library, without Python bindings: it registers torch operators when it is
loaded. It exists in variants, one for each instruction set, of which a process loads the one that fits its processor.

A library is looked for beside the package (compiled when the package was installed) and then in a cache (compiled when
it was first used). Its file name holds a fingerprint of everything it depends on: one that belongs to other sources or
to another torch, whose C++ interface differs, is never loaded.

setup.py loads this file by its path, where the package and torch may not exist yet: import nothing but the standard
library at the top.
"""

import contextlib
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
SOURCES = PACKAGE / "csrc"
PREBUILT = PACKAGE / "_extension"
LIBRARY = "dogo_fast_cpp"
CACHE_VARIABLE = "DOGO_FAST_CACHE"
SANITIZE_VARIABLE = "DOGO_FAST_SANITIZE"
COMPILERS = ("g++", "c++", "clang++")
KEPT_SECONDS = 30 * 24 * 3600  # how long the cache keeps a library that nobody loads

INSTRUCTION_SETS = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512", "-mfma", "-mf16c"),
    "default": (),
}

_lock = threading.Lock()
_loaded = False
_failure: "ExtensionError | None" = None
_warned = False


class ExtensionError(RuntimeError):
    """The C++ kernels cannot be had. The message says what failed and what to do."""


def variants() -> tuple[str, ...]:
    """The variants worth compiling ahead for machines like this one."""
    return ("avx2", "avx512") if platform.machine() in ("x86_64", "AMD64") else ("default",)


def variant() -> str:
    """The variant for this processor, as torch sees it: the environment's ``ATEN_CPU_CAPABILITY`` counts."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if capability in variants() else "default"


def sources() -> list[Path]:
    """The files that are compiled.

    Raises:
        ExtensionError: there are none.
    """
    found = sorted(SOURCES.glob("*.cpp"))
    if not found:
        raise ExtensionError(f"the C++ sources are not in {SOURCES}: install dogo_fast again")
    return found


def compile_flags(variant: str, *, threads: bool = True) -> list[str]:
    """What the compiler is told, apart from where torch's headers lie; ``threads``: with OpenMP."""
    import torch

    # The kernels need C++20; the headers of torch need at least the C++ that it was compiled as.
    built_as = re.search(r"C\+\+ Version: 20(\d\d)", torch.__config__.show())
    standard = max(20, int(built_as[1])) if built_as else 20
    flags = [f"-std=c++{standard}", "-fPIC", "-fvisibility=hidden", *INSTRUCTION_SETS[variant]]
    if threads:
        flags.append("-fopenmp")
    if sanitizers := os.environ.get(SANITIZE_VARIABLE):
        # vptr would look for type information that torch's libraries keep to themselves.
        flags += [f"-fsanitize={sanitizers}", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
        flags += ["-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    else:
        flags += ["-O3", "-DNDEBUG"]
    return flags


def link_flags() -> list[str]:
    """What the linker is told, apart from where torch's libraries lie.

    There is no -fopenmp among it: the OpenMP functions are then found in the runtime that torch has loaded, whichever
    that is, so that the process has one pool of threads and the library needs no runtime of its own to be installed.
    """
    flags = ["-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    if sanitizers := os.environ.get(SANITIZE_VARIABLE):
        flags.append(f"-fsanitize={sanitizers}")
    return flags


def fingerprint(variant: str) -> str:
    """A short hash over everything a compiled library depends on, but for the compiler."""
    import torch

    digest = hashlib.sha256()
    for path in (*sources(), *sorted(SOURCES.glob("*.h"))):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    digest.update(repr((torch.__version__, compile_flags(variant), link_flags(), platform.machine())).encode())
    return digest.hexdigest()[:16]


def library_name(variant: str) -> str:
    """The file name of a compiled library."""
    return f"{LIBRARY}-{variant}-{fingerprint(variant)}.so"


def cache_folder() -> Path:
    """Where libraries compiled on first use are kept.

    Raises:
        ExtensionError: the user has no home folder, and the environment names no other.
    """
    try:
        if chosen := os.environ.get(CACHE_VARIABLE):
            return Path(chosen).expanduser().absolute()
        if caches := os.environ.get("XDG_CACHE_HOME"):
            return Path(caches).absolute() / "dogo_fast"
        return Path.home() / ".cache" / "dogo_fast"
    except RuntimeError:
        raise ExtensionError(f"there is no home folder to cache the C++ kernels in: set {CACHE_VARIABLE}") from None


def find_compiler() -> list[str]:
    """The command of the C++ compiler: the environment's ``CXX``, or the first that is there.

    Raises:
        ExtensionError: there is none.
    """
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise ExtensionError(f"CXX={os.environ['CXX']} of the environment is no command ({error})") from None
    for command in [chosen] if chosen else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    if chosen:
        looked_for, remedy = f"CXX={shlex.join(chosen)} of the environment", "correct CXX, or unset it"
    else:
        looked_for, remedy = f"{', '.join(COMPILERS)} on the PATH", "install g++"
    raise ExtensionError(
        f"there is no C++ compiler to compile the C++ kernels with (looked for {looked_for}): {remedy}"
    )


def find_ninja() -> str:
    """The path of ninja: the Python package's, which is not on the PATH where its environment is not activated.

    Raises:
        ExtensionError: there is none.
    """
    with contextlib.suppress(ImportError):
        import ninja

        if found := shutil.which("ninja", path=ninja.BIN_DIR):
            return found
    if found := shutil.which("ninja"):
        return found
    raise ExtensionError("there is no ninja to compile the C++ kernels with: pip install ninja")


def understands_threads(compiler: Sequence[str]) -> bool:
    """Whether the compiler's OpenMP works with torch's runtime: g++'s does, clang's calls functions of its own runtime.

    The two runtimes in one process would not know of each other's threads: every thread would do all the work.
    """
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace").stdout
    except OSError:
        return True  # compiling will say what is wrong with it
    return "clang" not in version


def load() -> None:
    """Load the library into this process, once; compile it first if it is nowhere to be found.

    Raises:
        ExtensionError: it cannot be had. Later calls raise the same without trying again.
    """
    global _loaded, _failure
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        if _failure is not None:
            raise _failure.with_traceback(None)
        try:
            _find_or_build()
        except ExtensionError as error:
            _failure = error
            raise
        except OSError as error:
            _failure = ExtensionError(f"the C++ kernels cannot be compiled or loaded: {error}")
            raise _failure from error
        _loaded = True


def available() -> bool:
    """Whether the C++ kernels can be had: loads them, or says once in a process why not and what is used instead."""
    global _warned
    try:
        load()
    except ExtensionError as error:
        with _lock:
            first, _warned = not _warned, True
        if first:
            message = (
                f"dogo_fast: {error}; the dense formulas of dogo_fast.reference are used instead "
                "(DOGO_FAST_BACKEND=reference asks for them, without this warning)"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=_caller())
        return False
    return True


def build(unusable: tuple[int, int, int] | None = None) -> Path:
    """The library for this processor in the cache, compiled if it is not there yet; other processes wait meanwhile.

    Args:
        unusable: the identity of a library in the cache that cannot be loaded and is to be replaced.

    Raises:
        ExtensionError: it cannot be compiled.
    """
    if sys.platform != "linux":
        raise ExtensionError(f"the C++ kernels are compiled on Linux only, this is {sys.platform}")
    from dogo_fast.locks import locked

    chosen = variant()
    cache, name = cache_folder(), library_name(chosen)
    library, log = cache / name, (cache / name).with_suffix(".log")
    compiler, ninja = find_compiler(), find_ninja()
    earlier_log = _identity(log)
    with contextlib.ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            # The whole cache's, so that what lies there half done is known to be nobody's.
            stack.enter_context(locked(cache / "lock", needed=True))
            if _is_whole(library) and _identity(library) != unusable:
                return library
            if _identity(log) not in (None, earlier_log):
                raise _compile_error(log)  # another process tried while this one waited
            for left_over in cache.glob("compile-*"):
                shutil.rmtree(left_over, ignore_errors=True)
            folder = Path(stack.enter_context(_temporary_folder(cache)))
        except OSError as error:
            raise ExtensionError(
                f"the C++ kernels cannot be kept in {cache} ({error.strerror}): set {CACHE_VARIABLE} to another folder"
            ) from error
        threads = understands_threads(compiler)
        note = "" if threads else "; for one thread only, as clang's OpenMP is not torch's: g++ makes it all of them"
        print(f"dogo_fast: compiling the CPU kernels once (about half a minute), into {cache}{note}", file=sys.stderr)
        _write_ninja_file(folder, name, compiler, compile_flags(chosen, threads=threads))
        succeeded, output = _run([ninja, "--quiet", *_jobs()], folder)
        if not succeeded:
            log.write_text(output)
            raise _compile_error(log)
        if os.environ.get(SANITIZE_VARIABLE):
            sys.stderr.write(output)  # warnings, for those who work on the kernels
        with open(folder / name, "rb") as written:
            os.fsync(written.fileno())
        os.replace(folder / name, library)
        log.unlink(missing_ok=True)
        _forget_old(cache)
    return library


def _find_or_build() -> None:
    """Load the library from the first place that has one that works."""
    import torch

    name = library_name(variant())
    if _loads(PREBUILT / name):
        return
    cached = cache_folder() / name
    identity = _identity(cached)
    if _loads(cached):
        with contextlib.suppress(OSError):
            os.utime(cached)  # it is used: see _forget_old
        return
    torch.ops.load_library(build(unusable=identity))


def _loads(library: Path) -> bool:
    """Load a library if it is there and works on this machine: it may have come from another, with newer libraries."""
    import torch

    try:
        if not _is_whole(library):
            return False
        torch.ops.load_library(library)
    except OSError:
        return False
    return hasattr(torch.ops.dogo_fast_cpp, "statistics")  # a whole library, but is it ours?


def _is_whole(library: Path) -> bool:
    """Whether a file is an ELF library that was not cut off: to load one would kill the process.

    The table of its sections, which the head points at, is what the linker writes last.
    """
    try:
        with open(library, "rb") as file:
            head = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return False
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return False
    order = "<" if head[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", head, 0x28)
    entry_size, entries = struct.unpack_from(f"{order}HH", head, 0x3A)
    return bool(0 < table <= table + entry_size * entries <= size)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from one that replaced it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _temporary_folder(cache: Path) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="compile-", dir=cache)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_ninja_file(folder: Path, library: str, compiler: Sequence[str], flags: Sequence[str]) -> None:
    """Write ``build.ninja``, which makes ``library`` in the same folder."""
    extension = import_cpp_extension()
    headers = [part for path in extension.include_paths() for part in ("-isystem", path)]
    libraries = [f"-L{path}" for path in extension.library_paths()]
    files = sources()
    objects = [f"{path.stem}.o" for path in files]
    lines = [
        "ninja_required_version = 1.3",
        "rule compile",
        f"  command = {_command([*compiler, *flags, *headers])} -c $in -o $out",
        "rule link",
        f"  command = {_command([*compiler, '-shared'])} $in {_command([*libraries, *link_flags()])} -o $out",
        *(f"build {made}: compile {_ninja_path(path)}" for made, path in zip(objects, files, strict=True)),
        f"build {library}: link {' '.join(objects)}",
    ]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")


def _command(words: Sequence[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return re.sub(r"[$: ]", r"$\g<0>", str(path.absolute()))


def _jobs() -> list[str]:
    """ninja's option for the number of compilers at once: torch's variable is heeded, memory may be short."""
    jobs = os.environ.get("MAX_JOBS", "")
    return ["-j", jobs] if jobs.isdigit() else []


def _run(command: Sequence[str], folder: Path) -> tuple[bool, str]:
    """Run a command; an interruption stops it. Whether it succeeded, and what it said."""
    english = {**os.environ, "LC_ALL": "C"}  # _compile_error reads it
    with subprocess.Popen(
        command,
        cwd=folder,
        env=english,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()  # ninja stops its compilers; killed, it would leave them running
            raise
    return process.returncode == 0, output


def _compile_error(log: Path) -> ExtensionError:
    """The error that a log of a failed compilation tells of."""
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if re.search(r"\berror\b", line, re.IGNORECASE)]
    last = [line for line in said if not line.startswith("ninja:")]
    told = " | ".join(line[:200] for line in (errors or last)[-3:]) or "the compiler said nothing"
    return ExtensionError(f"compiling the C++ kernels failed: {told} (all that was said is in {log})")


def _forget_old(cache: Path) -> None:
    """Remove what nobody has loaded for long: each torch and each version of the sources leaves a library."""
    import time

    for path in cache.glob(f"{LIBRARY}-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()


def import_cpp_extension() -> Any:
    """torch.utils.cpp_extension, without what its import says about CUDA, which is not needed here."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import torch.utils.cpp_extension
    finally:
        logger.setLevel(level)
    return torch.utils.cpp_extension


def _caller() -> int:
    """The ``stacklevel`` at which the caller of this function's caller warns about whoever called the library."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("dogo_fast", "torch"):
        level, frame = level + 1, frame.f_back
    return level
