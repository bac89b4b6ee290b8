"""Label Studio's JSON: tasks with `data` and `annotations[].result[]` of type `labels`, and its JSON-MIN export.

Each annotation of a task is a document; a task without annotations gives its predictions, or nothing. Offsets are
half-open code points; older versions counted UTF-16 units. Everything
but the text and its spans (other fields, relations, other results) is kept in meta and written back. The written tasks
can be imported by Label Studio; entities with scores are written as predictions, others as annotations. Exports without
any labels, of choices or images, are refused, and tasks whose text is only a link to a file.
"""

from __future__ import annotations

from spantune.data.formats.label_studio.interface import labelling_interface
from spantune.data.formats.label_studio.reading import claims, is_link, read
from spantune.data.formats.label_studio.writing import predicted_results, write

__all__ = ["claims", "is_link", "labelling_interface", "predicted_results", "read", "write"]
