"""What reading and writing Label Studio's JSON have in common: names, and values derived from the fields of a task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

NAME = "label_studio"
"""The key of a document's meta that holds everything of the task but its text and its spans."""
OWN = "spantune"
"""The field of a task's meta in which the writer stores id and meta of the document; also its `model_version`."""
NAMES = {"from_name": "label", "to_name": "text"}
"""The names of the tags <Labels> and <Text> in the labelling interface."""
MADE = re.compile("spantune-[0-9]+")
"""The pattern of the ids that the writer gives to regions."""

Kind = Literal["annotations", "predictions"]


def derived(frame: Mapping[str, object], fields: Mapping[str, object]) -> dict[str, object]:
    """Return the document's meta that follows from the fields of a task (`frame`) and of an annotation (`fields`)."""
    group = {"group": str(frame["id"])} if "id" in frame else {}
    return group | ({"annotator": fields["completed_by"]} if "completed_by" in fields else {})


def joined(task: object, completion: object) -> str:
    return f"{task}" if completion is None else f"{task}-{completion}"
