"""Rows as a pandas DataFrame, and counts in words. pandas is imported only here, when a DataFrame is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from spantune.core.errors import ConfigError

if TYPE_CHECKING:
    import pandas


def data_frame(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> pandas.DataFrame:
    """Return `rows` as a DataFrame.

    Args:
        rows: column name to value, for each row.
        columns: the names of the first columns, in this order. They are there even if no row has them; other names in
            `rows` become further columns.

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
    """Return a count with its noun, such as "1 document" or "1,200 documents".

    Args:
        count: the count.
        what: the noun in the singular.
        several: the plural; `what` with an s if it is None.
    """
    return f"{count:,} {what if count == 1 else several or f'{what}s'}"
