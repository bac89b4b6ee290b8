"""Keeps `errors.md`: the message of every error that spantune raises, as the tests saw it.

The places that make an error are read from the source code. The messages come from a test run with `--record-errors
FOLDER`; a message that still fits its place is not replaced, so that the page changes only where the code does. For a
place that no test on this machine reaches, the page has the words of the code. `--check` compares the page with the
code and exits with 1 if they differ.

    python -m pytest -n 2 -m "not gpu" --record-errors FOLDER
    python docs/errors.py FOLDER
    python docs/errors.py --check
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "spantune"
PAGE = ROOT / "docs" / "errors.md"
HEAD = """<!-- Made by docs/errors.py from a test run; do not edit. -->
# Errors

Every error that spantune reports, by the module that finds it. The messages are those of the test suite, so names of
files, labels and figures are examples; where `…` stands for values, the words are those of the code. On the command
line an error is one line on stderr, after `error: `, and the exit code is 2. In Python it is an exception of the type
that stands before the message; all of them derive from `SpantuneError`:

| type | what is wrong |
|---|---|
| `ConfigError` | a recipe, an option or an argument |
| `DataError` | a corpus file or a document; names file, line and field where there are any |
| `ModelError` | a model, a tokenizer or an adapter |
| `RunError` | a run folder, or what a run needs while it works |
| `RankLost` | a `RunError`: another of the processes that train together has ended |
"""
_BLOCK = re.compile(r"^## `([^`]+)`\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Place:
    """A call that makes an error.

    `pattern` matches the end of its messages, and is None if the code does not say; `words` are the type and the
    message with `…` for its values.
    """

    module: str
    first_line: int
    last_line: int
    pattern: re.Pattern[str] | None
    words: str

    def fits(self, message: str) -> bool:
        """Whether `message` can come from here."""
        return self.pattern is None or self.pattern.search(message) is not None


def main() -> int:
    """Write the page from a folder of recorded errors, or check it; returns the exit code."""
    if len(sys.argv) != 2:
        print("usage: python docs/errors.py FOLDER | --check", file=sys.stderr)
        return 2
    places = list(all_places())
    examples = read_page()
    if sys.argv[1] == "--check":
        problems = check(places, examples)
        print("\n".join(problems), file=sys.stderr)
        return 1 if problems else 0
    recorded = read_recorded(Path(sys.argv[1]), places)
    PAGE.write_text(make_page(places, examples, recorded), encoding="utf-8")
    return 0


def check(places: list[Place], examples: dict[str, list[str]]) -> list[str]:
    """Return what is wrong with the page: places without a message, and messages without a place."""
    shown = placed(places, examples)
    problems = [
        f"src/spantune/{place.module}:{place.first_line}: docs/errors.md does not show this error; see docs/errors.py"
        for place in places
        if place not in shown
    ]
    used = {(place.module, message) for place, message in shown.items()}
    for module, messages in examples.items():
        problems += [
            f"docs/errors.md, {module}: nothing makes this error any more: {message}"
            for message in messages
            if (module, message) not in used
        ]
    return problems


def all_places() -> Iterator[Place]:
    """Yield each call in the source code that makes an error, in the order of the modules and lines."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    classes = {"SpantuneError"}
    for tree in [*trees.values()] * 2:  # twice, as a class may stand before the one that it derives from
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(_name(base) in classes for base in node.bases):
                classes.add(node.name)
    forwarding = {name for tree in trees.values() for name in _forwarding(tree, classes)}
    for path, tree in trees.items():
        yield from sorted(
            _places(path.relative_to(SOURCE).as_posix(), tree, classes, forwarding), key=lambda place: place.first_line
        )


def _forwarding(tree: ast.AST, classes: set[str]) -> Iterator[str]:
    """The functions that make an error of a message that they are given."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            parameters = {argument.arg for argument in function.args.args}
            for node in ast.walk(function):
                if _makes(node, classes) and _message(node, parameters) is None:
                    yield function.name


def _places(module: str, tree: ast.AST, classes: set[str], forwarding: set[str]) -> Iterator[Place]:
    owners = {
        child: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)
    }  # a later, inner function replaces the outer one
    for node in ast.walk(tree):
        if not _makes(node, classes | forwarding):
            continue
        assert isinstance(node, ast.Call)
        owner = owners.get(node)
        parameters = {argument.arg for argument in owner.args.args} if owner is not None else set()
        message = _message(node, parameters)
        if message is not None:
            pattern = _pattern(message)
            type_name = _name(node.func) if _name(node.func) in classes else "DataError"
            words = f"{type_name}: {_words(message)}"
            yield Place(module, node.lineno, node.end_lineno or node.lineno, pattern, words)


def _makes(node: ast.AST, names: set[str]) -> bool:
    if not isinstance(node, ast.Call) or _name(node.func) not in names or not (node.args or node.keywords):
        return False
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    return not (isinstance(owner, ast.Name) and owner.id in ("logger", "log", "logging"))


def _message(node: ast.AST, parameters: set[str]) -> ast.expr | None:
    """The message that a call states; None if it hands on a parameter of the function around it."""
    assert isinstance(node, ast.Call)
    message = node.args[0] if node.args else node.keywords[0].value
    return None if isinstance(message, ast.Name) and message.id in parameters else message


def _pattern(message: ast.expr) -> re.Pattern[str] | None:
    if isinstance(message, ast.Constant) and isinstance(message.value, str):
        parts = [re.escape(_one_line(message.value))]
    elif isinstance(message, ast.JoinedStr):
        parts = [
            re.escape(_one_line(str(part.value))) if isinstance(part, ast.Constant) else ".*" for part in message.values
        ]
    else:
        return None
    return re.compile("".join(parts) + "$")


def _words(message: ast.expr) -> str:
    """The message of the code, with `…` for each value in it."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    texts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts]
    return _one_line("".join(texts))


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _one_line(message: str) -> str:
    return message.replace("\n", " ⏎ ")


def placed(places: list[Place], examples: dict[str, list[str]]) -> dict[Place, str]:
    """Return a message of the page for each place; the places that fewest messages fit choose first."""
    fitting = {
        place: [message for message in examples.get(place.module, []) if place.fits(message)] for place in places
    }
    shown: dict[Place, str] = {}
    used: set[tuple[str, str]] = set()
    for place in sorted(places, key=lambda place: len(fitting[place])):
        free = [m for m in fitting[place] if (place.module, m) not in used and m != place.words]
        free += [place.words] * (place.words in fitting[place])
        if free:
            shown[place] = free[0]
            used.add((place.module, free[0]))
    return shown


def read_page() -> dict[str, list[str]]:
    """Return the messages of the page by module."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    return {module: block.splitlines() for module, block in _BLOCK.findall(text)}


def read_recorded(folder: Path, places: list[Place]) -> dict[Place, str]:
    """Return the shortest recorded message of each place."""
    recorded: dict[Place, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            message = f"{record['type']}: {_neutral(record['message'])}"
            place = _place_of(record["frames"], places)
            if place is not None and place.fits(message):
                known = recorded.get(place)
                if known is None or (len(message), message) < (len(known), known):
                    recorded[place] = message
    return recorded


def _place_of(frames: list[tuple[str, int]], places: list[Place]) -> Place | None:
    """The place in the innermost frame that has one."""
    for module, line in frames:
        here = [place for place in places if place.module == module and place.first_line <= line <= place.last_line]
        if here:
            return min(here, key=lambda place: place.last_line - place.first_line)
    return None


def _neutral(message: str) -> str:
    """A message on one line, without what differs from machine to machine: temporary folders, ports."""
    message = re.sub(r"/\S*?/pytest-\d+/(popen-gw\d+/)?[\w.\[\]-]+/", "", _one_line(message))
    message = message.replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
    return re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:8000", message)


def make_page(places: list[Place], examples: dict[str, list[str]], recorded: dict[Place, str]) -> str:
    """Return the page with a message for each place that has one."""
    shown = placed(places, examples)
    lines = [HEAD]
    for module in dict.fromkeys(place.module for place in places):
        own_places = [place for place in places if place.module == module]
        messages = [_best(place, shown, recorded) for place in own_places]
        lines += [f"## `{module}`", "", "```text", *dict.fromkeys(messages), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _best(place: Place, shown: dict[Place, str], recorded: dict[Place, str]) -> str:
    """The message that the page has, if a test has shown it, else a recorded one, else the words of the code."""
    message = shown.get(place)
    if message is not None and message != place.words:
        return message
    return recorded.get(place) or place.words


if __name__ == "__main__":
    sys.exit(main())
