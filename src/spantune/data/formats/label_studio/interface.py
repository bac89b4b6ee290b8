"""The labelling interface of a Label Studio project: the XML that says which labels a text can have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

from spantune.core import LABEL_COLORS, DataError, Label, label_colors
from spantune.data.formats.label_studio.names import NAMES

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def labelling_interface(labels: Sequence[Label], key: str = "text") -> str:
    """Return the XML of a project in which the tasks that `write` makes can be corrected.

    Args:
        labels: the labels of the task, in its order. Their colours are those of reports. An annotation holds the code
            of a label; its name and description are shown as a hint.
        key: the field of a task's data that holds the text.

    Raises:
        DataError: a label has a character that XML cannot hold.
    """
    color_of = label_colors([label.code for label in labels])
    rows = []
    for label in labels:
        if bad := _NOT_XML.search(label.code):
            raise DataError(
                f"the label {label.code!r} has {bad.group()!r}, which the labelling interface of Label Studio cannot "
                "hold; give the label another code in task.labels",
                field="labels",
            )
        hint = _NOT_XML.sub(" ", ": ".join(part for part in (label.name, label.description) if part))
        shown = f" hint={quoteattr(hint)}" if hint and hint != label.code else ""
        color, _ = LABEL_COLORS[color_of[label.code]]
        rows.append(f'    <Label value={quoteattr(label.code)} background="{color}"{shown}/>')
    labels_tag = f'  <Labels name="{NAMES["from_name"]}" toName="{NAMES["to_name"]}">'
    text_tag = f'  <Text name="{NAMES["to_name"]}" value={quoteattr(f"${key}")}/>'
    return "\n".join(["<View>", labels_tag, *rows, "  </Labels>", text_tag, "</View>", ""])
