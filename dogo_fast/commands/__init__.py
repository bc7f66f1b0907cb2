"""One module a command, each with ``read(words, summary)``: what the words ask for, checked and ready to run. The
summary heads the help. dogo_fast/cli.py has their names."""

import re


def as_option(setting: str) -> str:
    """--batch-size of ``batch_size``."""
    return "--" + setting.replace("_", "-")


def as_options(message: str) -> str:
    """A message of the library's, whose settings stand in backquotes, as the command line says it."""
    return re.sub("`([a-z_]+)`", lambda found: as_option(found[1]), message)
