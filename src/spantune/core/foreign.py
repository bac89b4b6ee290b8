"""A context manager that turns every error of a library that reads model files into one ModelError.

Model folders, tokenizers and adapters come from others. They are read by transformers, peft, tokenizers, jinja2 and
safetensors, each of which raises errors of other types. The block must contain only calls of such libraries, so that a
bug of spantune is never reported as a damaged file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spantune.core.errors import ModelError, SpantuneError
from spantune.core.files import first_line

OWN_CODE = "trust_remote_code"
"""The option that transformers names in its error if a model folder needs its own Python code to be run."""
PANIC = "PanicException"
"""The class name of a failed assertion in the Rust libraries tokenizers and safetensors.

The class derives from BaseException and not from Exception.
"""


@contextmanager
def foreign(where: Path | str, problem: str, remedy: str) -> Iterator[None]:
    """Turn every error of a library inside the block into a ModelError `where: problem (error); remedy`.

    Args:
        where: the folder or file that is read, or a description of its part.
        problem: what cannot be done, such as `config.json cannot be read`.
        remedy: what the user can do.

    Raises:
        ModelError: a library raised an error. A SpantuneError passes unchanged.
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
