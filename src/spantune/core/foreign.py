"""The border around files of others: what a library raises while it reads them becomes one ModelError.

Model folders, tokenizers and adapters are written by others and read by transformers, peft, tokenizers, jinja2 and
safetensors, each of which has errors of its own kinds. Only calls of such libraries stand inside the border, so that a
bug of spantune is never reported as a damaged file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spantune.core.errors import ModelError, SpantuneError
from spantune.core.files import first_line

OWN_CODE = "trust_remote_code"
"""The option of transformers that its error names when a folder cannot be read without running code of its own."""
PANIC = "PanicException"
"""How the libraries in Rust, tokenizers and safetensors, report a failed assertion; it is no `Exception`."""


@contextmanager
def foreign(where: Path | str, problem: str, remedy: str) -> Iterator[None]:
    """Turn every error of a library inside the block into a ModelError `where: problem (error); remedy`.

    Args:
        where: the folder or file that is read, or the part of it in words.
        problem: what cannot be done, such as `config.json cannot be read`.
        remedy: what to do.

    Raises:
        ModelError: a library raised; one of spantune's own errors passes unchanged.
    """
    try:
        yield
    except SpantuneError:
        raise
    except Exception as error:
        raise _described(where, problem, remedy, error) from error
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise _described(where, problem, remedy, error) from error


def _described(where: Path | str, problem: str, remedy: str, error: BaseException) -> ModelError:
    if OWN_CODE in str(error):
        return ModelError(
            f"{where}: {problem}: it wants to run code of its own (auto_map), which spantune never does; take a "
            "model of an architecture that transformers has itself, or a conversion of this one to it"
        )
    return ModelError(f"{where}: {problem} ({type(error).__name__}: {first_line(error)}); {remedy}")
