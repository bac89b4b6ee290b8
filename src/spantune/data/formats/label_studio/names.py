"""What reading and writing Label Studio's JSON agree on: names, and what is derived from a task's fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

NAME = "label_studio"
"""The key of a document's meta under which everything but its text and its spans is kept."""
OWN = "spantune"
"""The field of a task's meta in which the writer puts id and meta of the document, and the writer's model version."""
NAMES = {"from_name": "label", "to_name": "text"}
"""The names of the tags <Labels> and <Text> in the labelling interface."""
MADE = re.compile("spantune-[0-9]+")
"""The id of a region that the writer made."""

Kind = Literal["annotations", "predictions"]


def derived(frame: Mapping[str, object], fields: Mapping[str, object]) -> dict[str, object]:
    """Return the meta that is derived from the fields of a task and an annotation."""
    group = {"group": str(frame["id"])} if "id" in frame else {}
    return group | ({"annotator": fields["completed_by"]} if "completed_by" in fields else {})


def joined(task: object, completion: object) -> str:
    return f"{task}" if completion is None else f"{task}-{completion}"
