"""Pages that are made by reading files of the repository, without importing them: Python, results and decisions.

`generate.py` writes them. The page about Python is made from the names in the `__init__` of the package, from
signatures and from docstrings.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "spantune"
MADE = "<!-- Made by docs/generate.py from the code; do not edit. -->"
WIDTH = 120
_SECTION = re.compile(r"^(Args|Raises|Returns|Yields|Example|Examples|Attributes):$")
_SKIPPED = {"model_post_init", "model_config"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_page() -> str:
    """Every public name of the package: its signature, and what its docstring says."""
    package = SOURCE / "__init__.py"
    text = inspect.cleandoc(ast.get_docstring(_tree(package)) or "")
    functions: list[list[str]] = []
    classes: list[list[str]] = []
    for name in _exported(package):
        definition = _resolve(package, name)
        if isinstance(definition, ast.ClassDef):
            classes.append(_class(name, definition))
        elif definition is not None:
            functions.append(_function(f"## {name}", name, definition, method=False))
    head = [MADE, "# Python", "", *_markdown(text)]
    return "\n".join([*head, *(line for part in [*functions, *classes] for line in ["", *part])]) + "\n"


def results_page() -> str:
    """The measurements in `bench/results`, the newest first, with machine and command."""
    lines = [
        MADE,
        "# Results",
        "",
        "Every figure in these pages comes from one of the measurements below. Each names the machine, the versions,",
        "the commit and the command, so that it can be repeated. Targets that were missed are named too.",
        "",
        "| date | what was measured | on |",
        "|---|---|---|",
    ]
    for path in sorted((ROOT / "bench" / "results").glob("*.md"), reverse=True):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        date = path.name[:10]
        title = re.sub(r"^\d{4}-\d\d-\d\d( and \d+)?: |,? \(?\d{4}-\d\d-\d\d\)?$", "", title)
        machine = next((name for key, name in MACHINES.items() if f"-{key}-" in path.name), "two CPU cores")
        lines.append(f"| {date} | [{title[0].upper() + title[1:]}](../bench/results/{path.name}) | {machine} |")
    return "\n".join([*lines, "", "Experiments that were not kept, and observations, are in the [log](log.md)."]) + "\n"


MACHINES = {"h100": "one H100", "h200": "one H200", "h200x2": "two H200s"}


def decisions_page() -> str:
    """The decisions in `docs/decisions`, by number."""
    lines = [MADE, "# Decisions", "", "What was decided, why, what else was possible, and what it costs.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}](decisions/{path.name})")
    return "\n".join(lines) + "\n"


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _exported(module: Path) -> list[str]:
    """The names in a module's `__all__`."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no __all__")


def _resolve(module: Path, name: str) -> Definition | None:
    """Where a name of a module is defined, through the modules that pass it on; None: it is no function or class."""
    tree = _tree(module)
    for node in tree.body:
        if isinstance(node, Definition) and node.name == name:
            return node
    for imported in ast.walk(tree):
        for alias in imported.names if isinstance(imported, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name and (path := _module(imported.module or "")):
                return _resolve(path, alias.name)
    return None


def _module(name: str) -> Path | None:
    path = SOURCE.parent / name.replace(".", "/")
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _class(name: str, definition: ast.ClassDef) -> list[str]:
    lines = [f"## {name}", "", *_markdown(ast.get_docstring(definition) or "")]
    fields = [_field(node) for node in definition.body if isinstance(node, ast.AnnAssign)]
    shown = [field for field in fields if field]
    if shown:
        lines += ["", "```python", *shown, "```"]
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and _is_shown(node):
            lines += ["", *_function(f"### {name}.{node.name}", node.name, node, method=True)]
    return lines


def _field(node: ast.AnnAssign) -> str:
    name = ast.unparse(node.target)
    if name.startswith("_") or name in _SKIPPED or "ClassVar" in ast.unparse(node.annotation):
        return ""
    value = "" if node.value is None or isinstance(node.value, ast.Call) else f" = {_code(node.value)}"
    return f"{name}: {_code(node.annotation)}{value}"


def _is_shown(method: ast.FunctionDef) -> bool:
    decorators = {ast.unparse(node).partition("(")[0] for node in method.decorator_list}
    hidden = {"field_validator", "model_validator", "overload", "field_serializer"}
    return bool(ast.get_docstring(method)) and not decorators & hidden and method.name not in _SKIPPED


def _function(heading: str, name: str, definition: Definition, method: bool) -> list[str]:
    assert not isinstance(definition, ast.ClassDef)
    decorators = {ast.unparse(node) for node in definition.decorator_list}
    returns = f" -> {_code(definition.returns)}" if definition.returns else ""
    if decorators & {"property", "cached_property", "functools.cached_property"}:
        signature = [f"{name}{returns.replace(' ->', ':')}"]
    else:
        bound = method and "staticmethod" not in decorators
        signature = _wrapped(name, _parameters(definition.args, bound), returns)
    return [heading, "", "```python", *signature, "```", "", *_markdown(ast.get_docstring(definition) or "")]


def _parameters(arguments: ast.arguments, bound: bool) -> list[str]:
    """The parameters of a signature as the formatter writes them, without the first one of a method."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    shown = [_parameter(*pair) for pair in zip(plain, defaults, strict=True)]
    if arguments.posonlyargs:
        shown.insert(len(arguments.posonlyargs), "/")
    if bound:
        del shown[0]
    if arguments.vararg:
        shown.append("*" + _parameter(arguments.vararg, None))
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [_parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return shown + (["**" + _parameter(arguments.kwarg, None)] if arguments.kwarg else [])


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    shown = argument.arg + (f": {_code(argument.annotation)}" if argument.annotation else "")
    equals = " = " if argument.annotation else "="
    return shown + (f"{equals}{_code(default)}" if default else "")


def _code(node: ast.expr) -> str:
    """An expression as the formatter writes it."""
    code = ast.unparse(node)
    return code if '"' in code else code.replace("'", '"')


def _wrapped(name: str, parameters: list[str], returns: str) -> list[str]:
    whole = f"def {name}({', '.join(parameters)}){returns}: ..."
    if len(whole) <= WIDTH:
        return [whole]
    last = "," if not parameters[-1].startswith("**") or len(parameters) > 1 else ""
    lines = [f"    {parameter}," for parameter in parameters[:-1]] + [f"    {parameters[-1]}{last}"]
    return [f"def {name}(", *lines, f"){returns}: ..."]


def _markdown(docstring: str) -> list[str]:
    """A docstring as Markdown: sections as lists, indented blocks as code."""
    lines: list[str] = []
    section = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if heading := _SECTION.match(line):
            section = heading.group(1)
            lines += [f"**{section}**", ""]
        elif (
            section
            and line.startswith("    ")
            and not line.startswith("     ")
            and section not in ("Example", "Examples")
        ):
            key, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{key}`: {rest}" if colon else f"- {line.strip()}")
        elif section and line.startswith("     "):
            lines.append("  " + line.strip())
        else:
            section = section if line.strip() == "" or line.startswith(" ") else ""
            lines.append(line)
    return _fenced(lines)


def _fenced(lines: list[str]) -> list[str]:
    """Put indented blocks of code into fences."""
    made: list[str] = []
    block: list[str] = []
    for line in [*lines, ""]:
        if line.startswith("    ") or (block and not line.strip()):
            block.append(line[4:])
            continue
        if block:
            code = "\n".join(block).rstrip().splitlines()
            made += ["```python", *code, "```", ""]
            block = []
        made.append(line)
    while made and not made[-1].strip():
        made.pop()
    return made
