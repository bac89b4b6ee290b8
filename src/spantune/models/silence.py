"""Hides what libraries print while spantune works: progress bars, and warnings about changes in other libraries."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NO_WIDGETS = "IProgress not found"
"""The beginning of tqdm's warning that a notebook has no widgets for its progress bars."""


@contextmanager
def silenced() -> Iterator[None]:
    """Hide progress bars and hints of transformers and tqdm, and FutureWarnings, inside the block; errors are shown.

    A function with this decorator prints only the messages of spantune, in Python and in a notebook.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=NO_WIDGETS)
        from transformers.utils import logging

        has_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if has_bars:
                logging.enable_progress_bar()
