"""The options of a command from the fields of its model: argparse finds them, pydantic checks what they are given."""

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from dogo_fast.commands import as_option, as_options
from dogo_fast.errors import UserError
from dogo_fast.training.config import Metavar, PerPeer

Model = TypeVar("Model", bound=BaseModel)

PHRASES = {
    "Value error, ": "",
    "Input should be": "must be",
    "a valid integer, unable to parse string as an integer": "a whole number",
    "a valid number, unable to parse string as a number": "a number",
}
"""Of pydantic's, and what we say."""
SIMILAR = 0.7
"""How much of two words must be alike (difflib's ratio) for one to be proposed for the other."""


class Options(BaseModel):
    """Those of one command, with the sentence below each as its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Positional(Metavar):
    """Annotates a field whose values need no option's name before them."""


def _check_minutes(minutes: float | None) -> float | None:
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ValueError("must be a finite number above 0")
    return minutes


Minutes = Annotated[float | None, AfterValidator(_check_minutes)]


def parse(command: str, words: Sequence[str], model: type[Model], description: str) -> Model:
    """The model with what the words say.

    Raises:
        UserError: an unknown option, one without its value, or a value that is not allowed.
        SystemExit: after printing the help that was asked for.
    """
    return check(model, given(command, words, [model], description))


def given(
    command: str,
    words: Sequence[str],
    models: Sequence[type[BaseModel]],
    description: str,
    titles: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """By field, what the words give a value to; the values are not checked.

    Args:
        command: its name.
        words: those after the command.
        models: whose fields are its options.
        description: of the command, for the help.
        titles: of groups of options in the help, by the first field of each.

    Raises:
        UserError: an unknown option, or one without its value.
        SystemExit: after printing the help that was asked for.
    """
    parser = argparse.ArgumentParser(
        f"dogo-fast {command}",
        f"dogo-fast {command}{_positional(models)} [options]",
        description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        exit_on_error=False,
    )
    actions: list[argparse.Action] = []
    group: Any = parser
    for field, info in ((field, info) for model in models for field, info in model.model_fields.items()):
        group = parser.add_argument_group(titles[field]) if field in titles else group
        actions.append(_add(group, field, info))
    valued = {name for action in actions if action.nargs is None for name in action.option_strings}
    try:
        found, unknown = parser.parse_known_args(_joined(words, valued))
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from None
    if unknown:
        known = [name for action in actions for name in action.option_strings]
        mistyped = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        raise UserError(f"Unrecognized options: {', '.join(unknown)}{did_you_mean(mistyped, known)}")
    return vars(found)


def check(model: type[Model], values: Mapping[str, Any]) -> Model:
    """The model of these values.

    Raises:
        UserError: each that is not allowed, with what is, in one line.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise UserError(_describe(error)) from None


def did_you_mean(mistyped: Iterable[str], known: Sequence[str]) -> str:
    """The question that ends a message, with the known names that are like mistyped ones or have them within; "" where
    there are none."""
    names = {name.lstrip("-"): name for name in known}
    similar = set()
    for word in (word.lstrip("-").lower() for word in mistyped):
        similar |= set(difflib.get_close_matches(word, names, cutoff=SIMILAR))
        similar |= {name for name in names if len(word) > 2 and word in name}
    return f"; did you mean {' or '.join(sorted(names[name] for name in similar))}?" if similar else ""


def _joined(words: Sequence[str], valued: set[str]) -> list[str]:
    """``--option=value`` for ``--option value``, so that a value may begin with a hyphen; --a_b is --a-b."""
    joined: list[str] = []
    for word in words:
        if not word.startswith("--"):
            if joined and joined[-1] in valued:
                word = f"{joined.pop()}={word}"
            joined.append(word)
            continue
        name, equals, value = word.partition("=")
        joined.append(name.replace("_", "-") + equals + value)
    return joined


def _positional(models: Sequence[type[BaseModel]]) -> str:
    """For the line of usage."""
    fields = [info for model in models for info in model.model_fields.values()]
    return "".join(f" {each}..." for info in fields for each in info.metadata if isinstance(each, Positional))


def _add(group: Any, name: str, field: FieldInfo) -> argparse.Action:
    """The option of a field. Its value is a word as pydantic takes it, or the number that it says: a message then shows
    the number."""
    kinds = [each for each in _alternatives(field.annotation) if each is not NoneType]
    several = get_origin(kinds[0]) is tuple and not any(isinstance(each, PerPeer) for each in field.metadata)
    kind = next(iter(_alternatives(get_args(kinds[0])[0]))) if several else kinds[0]
    option: dict[str, Any] = {"type": _reader(kind), "metavar": _metavar(kind)}
    if several:
        option |= {"nargs": "+", "action": "extend"}
    if kind is bool:
        option = {"action": argparse.BooleanOptionalAction}
    for metavar in field.metadata:
        if isinstance(metavar, Metavar):
            option["metavar"] = str(metavar)
    if any(isinstance(each, Positional) for each in field.metadata):
        name_or_option, option["nargs"] = name, "*"
        del option["action"]
    else:
        name_or_option = as_option(name)
    action: argparse.Action = group.add_argument(name_or_option, **option)
    default = field.get_default()
    if isinstance(default, tuple):
        shown = " ".join(map(str, default)) if several else ",".join(map(str, dict.fromkeys(default)))
    else:
        shown = "" if default is None else str(default)
    text = as_options(field.description or "") + (f" (default: {shown})" if shown else "")
    action.help = text.replace("%", "%%")  # not as an argument: Python 3.10 adds a default of its own to a switch's
    return action


def _alternatives(annotation: Any) -> Sequence[Any]:
    """Those of a union, each without what is annotated; the type alone if it is none."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _metavar(kind: Any) -> str:
    return f"{{{','.join(get_args(kind))}}}" if get_origin(kind) is Literal else getattr(kind, "__name__", "X").upper()


def _reader(kind: Any) -> Any:
    def read(word: str) -> Any:
        try:
            return kind(word)
        except ValueError:  # pydantic says what is wrong with it
            return word

    return read if kind in (int, float) else str


def _describe(error: ValidationError) -> str:
    """Each wrong setting with its value and what is allowed, in one line."""
    texts = []
    for detail in error.errors():
        allowed = detail["msg"]
        for theirs, ours in PHRASES.items():
            allowed = allowed.replace(theirs, ours)
        if not detail["loc"]:  # of several settings together; the message names them
            texts.append(allowed)
            continue
        names = [part for part in detail["loc"] if isinstance(part, str)]  # a number says which peer
        setting = f"`{names[0]}`"
        if names[0] == "recipe" and isinstance(detail["input"], dict) and names[1:2] == ["str"]:
            continue  # what is wrong within the table says more
        if names[0] == "recipe" and len(names) > 2:
            setting = f"[recipe] {'.'.join(names[2:])}"
        texts.append(f"{setting} {allowed}, got {detail['input']!r}")
    return "; ".join(dict.fromkeys(texts))
