"""The documents hold: each code block runs or is checked, links and names lead somewhere, the site builds.

A block says what it is: ``python`` is run, a page's blocks in order and in one namespace; ``sh`` is checked line by
line, what is cheap is run; ``toml`` is read as a configuration; ``text`` is output or mathematics. Nothing else is
allowed. A ``python`` block whose first line is ``# test_NAME.py`` is a file as well, which ``pytest`` runs.
"""

import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import dogo_fast
from dogo_fast import cli, data, evaluation, functional, training
from dogo_fast.training.options import read_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path for each in ("*.md", "docs/**/*.md") for path in sorted(ROOT.glob(each))}
NARROW = ("README.md", "CONTRIBUTING.md")
GENERATED = re.compile("<!-- figures: .*?<!-- end of figures -->", re.DOTALL)
LANGUAGES = ("python", "sh", "toml", "text")
REFERENCE = "docs/reference.md"

NOTEBOOK = """
import torch
import dogo_fast.training.trainer
from dogo_fast.peers import SmallNetwork

a, b = (torch.randn(8, 16, requires_grad=True) for _ in range(2))
a_1, b_1 = (torch.randn(8, 16, requires_grad=True) for _ in range(2))
a_2, b_2 = (torch.randn(8, 32, requires_grad=True) for _ in range(2))
my_network = SmallNetwork()
images = torch.randint(0, 256, (256, 3, 8, 8), dtype=torch.uint8)
batch = torch.rand(2, 3, 8, 8)
"""
TRAINED = """
from dogo_fast.peers import build_backbone
from safetensors.torch import save_file

pathlib.Path("runs/first").mkdir(parents=True)
save_file(build_backbone("resnet18", image_size=32).state_dict(), "runs/first/peer_1.safetensors")
"""
RECORDED = """
import shutil
from dogo_fast.bench.records import recorded

shutil.copy(recorded()[0].path, "benchmark.json")
"""
STAND_INS = {"README.md": NOTEBOOK, "docs/training.md": TRAINED, "docs/profiling.md": RECORDED}
"""By page: run before its Python blocks, in a folder of its own, for names and files that the text presupposes. Pages
that are not here presuppose nothing."""

CHEAP = {"--data": "digits", "--peers": "small", "--epochs": "1", "--warmup-epochs": "0", "--device": "cpu"}
"""What a documented training is run with instead, so that it takes a second."""


class Block(NamedTuple):
    page: str
    line: int  # of its first line of code
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page."""
    blocks, code, language = [], [], None
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(("```", "~~~")):
            if language is None:
                language, code = line.strip().lstrip("`"), []
            else:
                blocks.append(Block(page, number - len(code), language, "\n".join(code) + "\n"))
                language = None
        elif language is not None:
            code.append(line)
    assert language is None, f"{page}: the last block does not end"
    return blocks


def prose(text: str) -> str:
    """A page without its fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


BLOCKS = [block for page, path in PAGES.items() for block in read_blocks(page, path.read_text())]
SHELL_LINES = [
    pytest.param(line, id=f"{block.page}: {line}")
    for block in BLOCKS
    if block.language == "sh"
    for line in block.code.splitlines()
    if line.strip()
]


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= set(LANGUAGES), [
        f"{block}: {block.language or 'no language'}" for block in BLOCKS if block.language not in LANGUAGES
    ]
    for page, path in PAGES.items():
        indented = re.findall(r"^(?: {4,}|\t).*", prose(path.read_text()), re.MULTILINE)
        assert not indented, f"{page}: a block without fences would not be checked: {indented}"


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch, however many are asked for."""
    make = training.Trainer.__init__

    def make_short(self: training.Trainer, *arguments: Any, epochs: int = 1, **options: Any) -> None:
        assert epochs > 0
        make(self, *arguments, epochs=1, **options)

    monkeypatch.setattr(training.Trainer, "__init__", make_short)


@pytest.fixture
def seeded() -> Iterator[None]:
    """The same numbers in every run; a page may choose its dtype."""
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}))
def test_python_blocks_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: None, short_trainings: None
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page, "pathlib": sys.modules["pathlib"]}
    exec(STAND_INS.get(page, ""), namespace)
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            # a file with the page's line numbers, where inspect (and so Triton) finds the source of functions
            path = tmp_path / f"{Path(page).name}-{block.line}.py"
            path.write_text("\n" * (block.line - 1) + block.code)
            exec(compile(path.read_text(), str(path), "exec"), namespace)


@pytest.mark.parametrize("block", [pytest.param(b, id=str(b)) for b in BLOCKS if b.language == "toml"])
def test_settings_are_settings(block: Block, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(block.code)
    training.PretrainConfig(**read_settings(tmp_path / "mine.toml"))


@pytest.mark.parametrize("line", SHELL_LINES)
def test_shell_lines_work(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if not words:
        return  # a comment
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block.language == "toml":
            Path("mine.toml").write_text(block.code)
        if named := re.match(r"# (test_\w+\.py)\n", block.code):
            Path(named[1]).write_text(block.code)
    check = COMMANDS.get(words[0].removeprefix(".venv/bin/"))
    assert check is not None, f"the test knows no command {words[0]}"
    check(words[1:])


def check_make(words: list[str]) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert words[0] in targets
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[0] == "install"
    for requirement in (word for word in words[1:] if not word.startswith("-")):
        name, extras = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
        assert name == "."
        assert {*(extras or "train").split(",")} <= {*project["optional-dependencies"]}


def check_pytest(words: list[str]) -> None:
    """Run, and each test of the file is in what was recorded."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "--benchmark-json=found.json", *words]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    file = Path(words[words.index("--benchmark-json") + 1] if "--benchmark-json" in words else "found.json")
    found = {each["name"].partition("[")[0] for each in json.loads(file.read_text())["benchmarks"]}
    assert found == set(re.findall(r"^def (test_\w+)", Path(words[0]).read_text(), re.MULTILINE))


def check_activate(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]
    assert "VENV ?= .venv" in (ROOT / "Makefile").read_text()


def check_module(words: list[str]) -> None:
    """``python -m MODULE``: it is there and knows the options."""
    assert words[0] == "-m"
    specification = importlib.util.find_spec(words[1])
    assert specification is not None
    if words[1].startswith("dogo_fast"):
        source = Path(specification.origin).read_text()
        assert all(f'"{word}"' in source for word in words[2:] if word.startswith("--"))


def check_dogo_fast(words: list[str]) -> None:
    """The line is parsed as it stands; the same with small data and networks is run."""
    with_values = iter(words)
    shown: list[str] = []
    for word in with_values:
        assert not word.startswith("--") or "=" not in word, "a space before the value, as in the other lines"
        if word in (*CHEAP, "--data-dir"):
            next(with_values)
        elif word == "--preset":
            name = next(with_values)
            assert name in training.presets.PRESETS
        else:
            shown.append(word)
    cli.parse(words)
    if words[0] in ("benchmark", "tune"):
        return  # minutes; tests/test_bench.py and tests/test_tuning.py run them
    if words[0] in ("evaluate", "compare"):
        make_runs(words[1:])
        if "DIR" not in " ".join(words):  # whose files are nowhere here
            cli.parse(words)()
            assert list(Path().rglob("evaluation*.json" if words[0] == "evaluate" else "comparison.md"))
        return
    kept = {key: value for key, value in CHEAP.items() if words[0] == "pretrain" or key in ("--data", "--device")}
    run = cli.parse([*shown, *(word for option in kept.items() for word in option)])
    run()
    assert any(Path().iterdir())


def make_runs(words: list[str]) -> None:
    """The run folders that a line names, of one epoch; what is called alone or second is without distillation."""
    for run in dict.fromkeys("/".join(word.split("/")[:2]) for word in words if word.startswith("runs/")):
        weight = 0.0 if run.startswith(("runs/alone", "runs/second")) else 1.0
        seed = int(run[-1]) if run[-1].isdecimal() else 0
        training.pretrain(
            training.PretrainConfig(epochs=1, kd_weight=weight, seed=seed, score_every=1, device="cpu", out=Path(run))
        )


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    ".": check_activate,
    "pytest": check_pytest,
    "python": check_module,
    "python3": check_module,
    "dogo-fast": check_dogo_fast,
}


def anchors(text: str) -> set[str]:
    """Of the headings of a page, as MkDocs and the usual hosts make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.is_file(), f"{page}: {link} is not there"
        assert ROOT in file.parents, f"{page}: {link} is not in the repository"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page}: {link} names no heading"


@pytest.mark.parametrize("page", NARROW)
def test_what_is_read_in_a_terminal_is_narrow(page: str) -> None:
    """The figures are made from records: tests/test_tables.py."""
    lines = GENERATED.sub("", PAGES[page].read_text()).splitlines()
    assert not [line for line in lines if len(line) > 120]


@pytest.mark.parametrize("page", sorted({*PAGES} - {"CHANGELOG.md"}))
def test_names_are_there(page: str) -> None:
    """Of modules and what is in them, and of files, in inline code; the changes have names that are gone, and
    adding-a-loss.md files that its reader makes."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page].read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        for name in re.findall(r"\bdogo_fast(?:\.[A-Za-z_]\w*)+", code):
            pkgutil.resolve_name(name)
        if re.fullmatch(r"(?!/|~)[\w./-]+/[\w.-]+\.(py|cpp|h|json|txt|md)", code) and "info_nce" not in code:
            assert any((ROOT / place / code).is_file() for place in ("", "dogo_fast", "docs")), code


def test_the_reference_names_everything_public() -> None:
    text = PAGES[REFERENCE].read_text()
    described = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    public = {name for module in (dogo_fast, functional, training, data, evaluation) for name in module.__all__}
    assert public - described == {"__version__"}
    assert "`dogo_fast.__version__`" in text


def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    for file in tmp_path.rglob("*.html"):
        text = file.read_text()
        loaded = re.findall(r"<(?:link|script|img|iframe)\b[^>]*?(?:src|href)=[\"']?([^\"'\s>]+)", text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], file.name
    for file in tmp_path.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", file.read_text()), file.name
