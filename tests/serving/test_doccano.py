"""doccano's custom REST request: the template in the documentation, applied to an answer of `/v1/extract`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest

from spantune.extraction import Extractor

PAGES = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["annotation.md", "annotation.zh.md"])
def test_the_template_gives_the_entities_of_a_text(served: Any, offline: Extractor, page: str) -> None:
    match = re.search(r"```jinja\n(.*?)\n```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    template = jinja2.Template(match[1])
    for text in ("😀疮痈", "未见异常。"):
        labelled = json.loads(template.render(input=served.extract(text=text).json()))  # as doccano does
        assert [(row["label"], row["start_offset"], row["end_offset"]) for row in labelled] == [
            (entity.label, entity.start, entity.end) for entity in offline.extract(text).entities
        ]
    hostile = {"entities": [{"label": '"<a>\\', "start": 0, "end": 1}, {"label": "b", "start": 1, "end": 2}]}
    assert [row["label"] for row in json.loads(template.render(input=hostile))] == ['"<a>\\', "b"]
