"""The places of regions that a browser has counted in HTML as it is displayed."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from html import unescape

from spantune.data.raw.json_records import Record

_HTML = re.compile(r"(?P<tag><!--.*?-->|</?[a-zA-Z!?][^>]*>)|&(?:#\w+|\w+);|.", re.DOTALL)


def html_span(html: str, value: Record) -> tuple[int, int]:
    """Return the span, in the source `html`, of a region that is stated in the visible text.

    Args:
        html: the source of the page.
        value: the region, with its XPath, its `globalOffsets` in the visible text, and its text.

    Raises:
        DataError: the region states no text, or the visible text at its offsets is another one.
    """
    stated = value.values.get("globalOffsets")
    start, end = (stated.get("start"), stated.get("end")) if isinstance(stated, dict) else (None, None)
    surface = value.text("text").replace("\\n", "\n") if value.values.get("text") else None
    if isinstance(start, int) and isinstance(end, int) and surface:
        shown = _shown(html)
        region = shown[start:end] if 0 <= start < end <= len(shown) else []
        if "".join(character for character, _, _ in region) == surface:
            return region[0][1], region[-1][2]
        if 0 <= start < end <= len(html) and html[start:end] == surface:  # a text in which "<" does not begin a tag
            return start, end
    raise value.error(
        f"found a region of HTML ({json.dumps(value.values.get('start'))[:40]}), and its text "
        f"{json.dumps(surface, ensure_ascii=False)[:40]} is not at its globalOffsets; expected offsets in the text: "
        "annotate with <Labels> on a <Text>, or export from a version of Label Studio that writes globalOffsets and "
        "text",
        "start",
    )


@lru_cache(maxsize=1)
def _shown(html: str) -> list[tuple[str, int, int]]:
    """Return each visible character of `html`, with the start and the end of its source."""
    return [
        (character, *match.span())
        for match in _HTML.finditer(html)
        if match["tag"] is None
        for character in unescape(match[0])
    ]
