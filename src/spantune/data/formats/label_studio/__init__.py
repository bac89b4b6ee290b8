"""Label Studio's JSON: tasks with `data` and `annotations[].result[]` of type `labels`, and its JSON-MIN export.

Each annotation of a task is a document. A task without annotations gives a document for each of its predictions, or
none. Offsets are half-open code points; older versions counted UTF-16 units. Everything but the text and its spans
(other fields, relations, other results) is kept in meta and written back. Label Studio can import the written tasks;
entities with scores are written as predictions, others as annotations. Two kinds of exports are refused: those without
any labels, such as choices or images, and tasks whose text is only a link to a file.
"""

from __future__ import annotations

from spantune.data.formats.label_studio.interface import labelling_interface
from spantune.data.formats.label_studio.reading import claims, is_link, read
from spantune.data.formats.label_studio.writing import predicted_results, write

__all__ = ["claims", "is_link", "labelling_interface", "predicted_results", "read", "write"]
