"""The layout of the help pages: wrapped at the width of the terminal, with options in sections, examples and lists.

`App` is a typer application whose commands have this layout. The docstring of a command has its example after
`Example: `, or several examples after `Examples:`, each indented by four spaces. Examples are never wrapped, so that
they can be copied.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from spantune.cli.names import LISTS

Function = TypeVar("Function", bound=Callable[..., Any])

WIDEST = 120
"""The maximum number of columns of a help page, since longer lines are hard to read."""
LEFT = 30
"""The maximum width of the column of names. The description of a longer name begins on the next line."""
GAP = 2
"""The number of spaces between the column of names and the descriptions."""
_TYPES = {"str": "TEXT", "path": "PATH", "int": "NUMBER", "float": "NUMBER"}
_TYPE = re.compile(r"<(?:list\[)?(\w+)(?: range)?\]?>")
_CHOICES = re.compile(r"<([^<>]*\|[^<>]*)>")


class Command(TyperCommand):
    """A command whose help page is made by this module.

    The class attribute `listed` has the titles of the lists at the end of its help page, which are keys of
    `names.LISTS`.
    """

    listed: tuple[str, ...] = ()

    def __init__(self, name: str | None, **settings: Any):
        super().__init__(name, **settings)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and parameter.metavar is None:
                parameter.metavar = parameter.name.upper()  # errors use this name too

    def get_help(self, ctx: Any) -> str:  # Any, since the class of contexts is private in typer
        """Return the help page."""
        return "\n".join(_page(self, ctx, self.listed))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line after the command's name."""
        return usage(self)


class Group(TyperGroup):
    """A group of commands whose help page is made by this module."""

    def get_help(self, ctx: Any) -> str:
        """Return the help page."""
        return "\n".join(_page(self, ctx, ()))


class App(typer.Typer):
    """A typer application whose help pages are made by this module."""

    def __init__(self, **settings: Any):
        settings = {"no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False, **settings}
        names = {"help_option_names": ["-h", "--help"]}
        super().__init__(cls=Group, context_settings=names, **settings)

    def command(  # type: ignore[override]  # only the settings of typer that are used here
        self, name: str | None = None, *, listed: Iterable[str] = (), hidden: bool = False
    ) -> Callable[[Function], Function]:
        """Return a decorator that makes a function a command.

        Args:
            name: the name of the command; that of the function if None.
            listed: the titles of the lists at the end of its help page, keys of `names.LISTS`.
            hidden: whether the command is left out of the list of commands.
        """
        kind = type("Command", (Command,), {"listed": tuple(listed)})
        return super().command(name, cls=kind, hidden=hidden)


def usage(command: TyperCommand) -> list[str]:
    """Return the words of the usage line after the name of a command: arguments, required options and `[OPTIONS]`."""
    words = []
    for parameter in command.params:
        if isinstance(parameter, TyperArgument) and not parameter.hidden:
            name = argument_name(parameter)
            words.append(name if parameter.required else f"[{name}]")
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {parameter.name.upper()}")
    return [*words, "[OPTIONS]"]


def argument_name(argument: TyperArgument) -> str:
    """Return the name of an argument in the help: `RUN`, or `FILES...` if it may be given several times."""
    name = str(argument.metavar)
    return name if argument.nargs == 1 else f"{name}..."


def examples(text: str) -> tuple[list[str], list[str]]:
    """Return the paragraphs of a docstring, each in one line, and its examples, each unchanged."""
    paragraphs, shown = [], []
    for block in inspect.cleandoc(text).split("\n\n"):
        if block.startswith("Example: "):
            shown.append(block.removeprefix("Example: "))
        elif block.startswith("    "):
            shown.append(textwrap.dedent(block))
        elif block.strip() != "Examples:":
            paragraphs.append(" ".join(block.split()))
    return paragraphs, shown


def _page(command: TyperCommand | TyperGroup, ctx: Any, listed: Iterable[str]) -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns, WIDEST)
    paragraphs, shown = examples(command.help or "")
    words = usage(command) if isinstance(command, TyperCommand) else ["[OPTIONS]", "COMMAND", "[ARGUMENTS]"]
    yield from _wrapped(" ".join([ctx.command_path, *words]), width, "Usage: ", " " * 9)
    for paragraph in paragraphs:
        yield ""
        yield from _wrapped(paragraph, width)
    if shown:
        yield from ("", "Examples:" if len(shown) > 1 else "Example:")
        yield from (textwrap.indent(example, "  ") for example in shown)
    for title, rows in _sections(command, ctx).items():
        yield from ("", f"{title}:")
        yield from _table(rows, width)
    if isinstance(command, TyperGroup):
        yield from ("", "Commands:")
        children = [(name, child) for name, child in command.commands.items() if not child.hidden]
        yield from _table([(name, first_sentence(child.help or "")) for name, child in children], width)
    for key in listed:
        yield from ("", f"{key}:")
        yield from _wrapped(LISTS[key](), width)


def first_sentence(text: str) -> str:
    """Return the description of a command in the list of commands: the first sentence of its help, without the stop."""
    return re.split(r"(?<=\.)\s", " ".join(inspect.cleandoc(text).split()), maxsplit=1)[0].rstrip(".")


def _sections(command: TyperCommand | TyperGroup, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return section title to rows (name, description) of arguments and options; empty sections are left out."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        assert isinstance(parameter, TyperArgument | TyperOption)
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        name, text = record
        if isinstance(parameter, TyperArgument):
            title, name = "Arguments", argument_name(parameter)
            text = re.sub(r" *\[required\]$", "", text)
        else:
            title = parameter.rich_help_panel or "Options"
            name = _CHOICES.sub(r"\1", _TYPE.sub(lambda type_: _TYPES.get(type_[1], type_[1].upper()), name))
        sections.setdefault(title, []).append((name, _range(text)))
    return {title: rows for title, rows in sections.items() if rows}


def _range(text: str) -> str:
    """Return the help text of an option with its range in words: `from 1` instead of typer's `x>=1`."""
    text = re.sub(r"\b([\d.]+)<=x<=([\d.]+)", r"from \1 to \2", text)
    return re.sub(r"\bx>=([\d.]+)", r"from \1", re.sub(r"\bx<=([\d.]+)", r"up to \1", text))


def _table(rows: list[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield the lines of a table with two columns, names and descriptions."""
    left = min(max(len(name) for name, _ in rows), LEFT)
    indent = " " * (2 + left + GAP)
    for name, text in rows:
        start = f"  {name:{left + GAP}}"
        if len(name) > left:
            yield f"  {name}"
            start = indent
        yield from _wrapped(text, width, start, indent) if text else [start.rstrip()]


def _wrapped(text: str, width: int, start: str = "  ", indent: str = "  ") -> list[str]:
    """Return the lines of `text`, wrapped at `width` columns without breaking a word.

    Args:
        text: the text.
        width: the maximum number of columns; at least 50 are used.
        start: the indentation of the first line.
        indent: the indentation of the other lines.
    """
    return textwrap.wrap(
        text,
        max(width, 50),
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
