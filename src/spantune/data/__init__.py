"""Annotated corpora: read, write, check, repair, count, split and cut them."""

from __future__ import annotations

from spantune.data import formats, splitting
from spantune.data.calls import SplitJob, check_files, split_corpus, split_file
from spantune.data.checks import check
from spantune.data.chunking import Chunk, Cutter, merge, split_long
from spantune.data.corpus import Corpus, to_dicts, to_pandas
from spantune.data.counts import Bin, Statistics, histogram, nesting, statistics
from spantune.data.document_checks import Demands
from spantune.data.engines import engine_for
from spantune.data.findings import Report, Tally
from spantune.data.formats import read, read_extractions, write
from spantune.data.formats.label_studio import is_link, labelling_interface, predicted_results
from spantune.data.formats.native import parse_text_line
from spantune.data.loading import Splits, holdout, read_splits, shared_texts
from spantune.data.merging import Merged, conflicting, count_predicted, merge_corpora
from spantune.data.parts import open_source, read_source, size_of
from spantune.data.raw.document import Nested, Options
from spantune.data.raw.text_files import cannot_be_read, is_stream, lines_of, read_bytes, read_text, try_lines
from spantune.data.raw.units import Unit
from spantune.data.relabeling import Relabeled, parse_label_map, relabel
from spantune.data.repairs import count_dropped, repair_all, repair_targets

__all__ = [
    "Bin",
    "Chunk",
    "Corpus",
    "Cutter",
    "Demands",
    "Merged",
    "Nested",
    "Options",
    "Relabeled",
    "Report",
    "SplitJob",
    "Splits",
    "Statistics",
    "Tally",
    "Unit",
    "cannot_be_read",
    "check",
    "check_files",
    "conflicting",
    "count_dropped",
    "count_predicted",
    "engine_for",
    "formats",
    "histogram",
    "holdout",
    "is_link",
    "is_stream",
    "labelling_interface",
    "lines_of",
    "merge",
    "merge_corpora",
    "nesting",
    "open_source",
    "parse_label_map",
    "parse_text_line",
    "predicted_results",
    "read",
    "read_bytes",
    "read_extractions",
    "read_source",
    "read_splits",
    "read_text",
    "relabel",
    "repair_all",
    "repair_targets",
    "shared_texts",
    "size_of",
    "split_corpus",
    "split_file",
    "split_long",
    "splitting",
    "statistics",
    "to_dicts",
    "to_pandas",
    "try_lines",
    "write",
]
