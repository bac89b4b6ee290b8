"""The error tree: all errors that spantune raises because of a user's input or machine.

    SpantuneError
    ├── ConfigError     an invalid recipe, override or command line
    ├── DataError       an invalid corpus file or document; carries file, line and field
    ├── ModelError      a missing or invalid model, tokenizer or adapter
    └── RunError        a run folder that exists already, is missing or is damaged
        └── RankLost    another of the processes that train together has ended

A message says where the problem is, what was found, what was expected and what to do. Credentials in it are masked. The
command line prints the message and exits with code 2. A bug of spantune itself shows as
an AssertionError or another error of Python, never as one of these.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar, overload

from spantune.core.secrets import masked

Value = TypeVar("Value")
Second = TypeVar("Second")


class SpantuneError(Exception):
    """The base class of spantune's errors. Catch it to catch every error that a user can fix."""

    def __init__(self, message: str = ""):
        super().__init__(masked(message))


class ConfigError(SpantuneError):
    """An invalid recipe, override or option."""


class ModelError(SpantuneError):
    """A missing or invalid model, tokenizer or adapter."""


class RunError(SpantuneError):
    """A run folder that exists already, is missing or is damaged."""


class RankLost(RunError):
    """Another of the processes that train together has ended: it raised an error or was killed."""


class DataError(SpantuneError):
    """An invalid corpus file or document.

    Args:
        message: what was found, what was expected and what to do.
        path: the file; None if it is not known.
        line: the line in the file, counted from 1; None if it is not known.
        field: the field of the record, such as `entities`; None if the error is not about one field.

    The four values are attributes of the error, with credentials in `message` masked.
    """

    def __init__(
        self, message: str, *, path: str | Path | None = None, line: int | None = None, field: str | None = None
    ):
        self.message, self.path, self.line, self.field = masked(message), path, line, field
        where = str(path) if path is not None else ""
        if line is not None:
            where += f":{line}" if where else f"line {line}"
        if field is not None:
            where += f", field {field}" if where else f"field {field}"
        super().__init__(f"{where}: {message}" if where else message)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message about the unknown name `name`: the most similar valid name and all valid names.

    Example: `did you mean 'train'? valid: data, train`. Names are compared without regard to case.
    """
    names = sorted(valid)
    close = closest(name, names)
    hint = f"did you mean {close!r}? " if close is not None else ""
    return f"{hint}valid: {', '.join(names)}"


def closest(name: str, valid: Iterable[str]) -> str | None:
    """Return the name in `valid` that is most similar to `name`, without regard to case; None if none is similar."""
    by_folded = {known.casefold(): known for known in sorted(valid, reverse=True)}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[close[0]] if close else None


@overload
def expect(value: object, kinds: type[Value], name: str, expected: str) -> Value: ...


@overload
def expect(value: object, kinds: tuple[type[Value], type[Second]], name: str, expected: str) -> Value | Second: ...


@overload
def expect(value: object, kinds: tuple[type[object], ...], name: str, expected: str) -> object: ...


def expect(value: object, kinds: type[object] | tuple[type[object], ...], name: str, expected: str) -> object:
    """Check the type of an argument of a public function, and return the argument.

        expect(run, (str, Path), "run", "the path of a run folder")

    Args:
        value: the argument.
        kinds: the accepted type or types; with `()` every value is refused.
        name: the name of the argument, for the message.
        expected: what is expected, in words, for the message.

    Raises:
        ConfigError: `value` has another type, or is a text or path with a NUL character.
    """
    if not isinstance(value, kinds):
        shown = " ".join(repr(value).split())
        found = f"{type(value).__name__} {shown if len(shown) <= 60 else f'{shown[:57]}...'}"
        raise ConfigError(f"{name}: expected {expected}, found {'None' if value is None else found}")
    if isinstance(value, str | os.PathLike) and "\0" in os.fspath(value):
        raise ConfigError(f"{name}: expected {expected}, found {value!r}, which has a NUL character")
    return value


def expect_each(
    values: object, kinds: type[Value] | tuple[type[Value], type[Second]], name: str, expected: str
) -> Iterator[Value | Second]:
    """Check the type of each member of `values`, an argument of a public function, and yield the members.

    The arguments are those of `expect`.

    Raises:
        ConfigError: `values` cannot be iterated or is a text, bytes or a mapping, or a member has another type.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        expect(values, (), name, expected)
    else:
        for number, value in enumerate(values):
            yield expect(value, kinds, f"{name}[{number}]", f"a member of {expected}")


def os_error(error: OSError) -> str:
    """Describe an OSError in one sentence: the file, what is wrong, and the remedy."""
    said = error.strerror or next(iter(str(error).splitlines()), "") or type(error).__name__
    where = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str | os.PathLike) else ""
    remedy = _REMEDIES.get(error.errno or 0, "check the file or the connection, or name another")
    return f"{where}{said}; {remedy}"


_ALLOW = "make it readable, or writable, for this user, or name another place"
_SPACE = "free some space, or name a place on another disk"
_REMEDIES = {
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EROFS: "name a place on a disk that can be written",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path, of which a part is a file",
    errno.EISDIR: "name a file, not a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ELOOP: "remove the link that leads to itself",
}


def require_system() -> None:
    """Check that spantune supports this operating system, which is Linux or macOS.

    Raises:
        ConfigError: the system is Windows.
    """
    if sys.platform == "win32":
        raise ConfigError(
            "spantune runs on Linux and macOS; on Windows install it inside WSL, the Windows Subsystem for Linux "
            "(wsl --install)"
        )
