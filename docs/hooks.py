"""What `mkdocs build` does besides: links out of docs/ lead to copies in the site, and docstrings are read our way.

On a page ``[text](../csrc/exp2.h)`` names a file of the repository. The site gets a copy, as plain text, which every
browser shows; the link is turned to it. A file that is not there keeps its link, about which MkDocs complains.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)(?=\))")
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+)(:.*\n(?:\1 +.*\n|\n(?=\1 +\S))*)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the files outside docs/ that its pages link to."""
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            path = _outside(link, page.src_uri, config)
            if path is not None and files.get_file_from_path(_copy_of(path)) is None:
                content = (_root(config) / path).read_bytes()
                files.append(File.generated(config, _copy_of(path), content=content))


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs/ to the copies."""

    def turn(match: re.Match[str]) -> str:
        path = _outside(match[1], page.file.src_uri, config)
        return match[1] if path is None else posixpath.relpath(_copy_of(path), posixpath.dirname(page.file.src_uri))

    return LINK.sub(turn, markdown)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def _outside(link: str, page: str, config: MkDocsConfig) -> str | None:
    """The path, from the repository's root, of a file beside docs/ that a page links to; None for anything else."""
    path = posixpath.normpath(posixpath.join(Path(config.docs_dir).name, posixpath.dirname(page), link))
    beside = not path.startswith(("../", f"{Path(config.docs_dir).name}/"))
    return path if beside and (_root(config) / path).is_file() else None


def _copy_of(path: str) -> str:
    return f"source/{path}" if path.endswith(".txt") else f"source/{path}.txt"


class SharedDescriptions(griffe.Extension):
    """Docstrings as this project writes them: ``a, b: ...`` under Args describes both, ``::`` begins an example."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = obj.docstring.value.replace("Example::\n", "Example:\n")
            obj.docstring.value = SHARED.sub(self._apart, text + "\n").rstrip("\n")

    @staticmethod
    def _apart(match: re.Match[str]) -> str:
        indent, names, description = match.groups()
        return "".join(f"{indent}{name}{description}" for name in names.split(", "))
