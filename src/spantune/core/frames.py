"""Rows as a pandas DataFrame, and counts in words; pandas is imported here only, and only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from spantune.core.errors import ConfigError

if TYPE_CHECKING:
    import pandas


def data_frame(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> pandas.DataFrame:
    """Return `rows` as a DataFrame with `columns` first, in their order; it has them also where there is no row.

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise ConfigError("to_pandas needs pandas, which is not installed; run pip install pandas") from None
    table = list(rows)
    names = dict.fromkeys([*columns, *(name for row in table for name in row)])
    return pandas.DataFrame([dict(row) for row in table], columns=list(names))


def number(count: int, what: str, several: str | None = None) -> str:
    """Return a count in words, such as "1 document" and "1,200 documents"; `several` is the plural without an s."""
    return f"{count:,} {what if count == 1 else several or f'{what}s'}"
