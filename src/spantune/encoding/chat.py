"""Render a tokenizer's chat template, which is a program by others, within limits.

transformers runs templates in jinja2's sandbox. The sandbox denies access to files and to Python, but does not end a
template that runs for ever. Here the steps of a rendering are counted, and the length of its output is limited. The
memory of a single expression, such as a string that is repeated a billion times, is not limited.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from spantune.core import ModelError, foreign
from spantune.encoding.tokenizer import Tokenizer

MOST_STEPS = 1_000_000
"""The most steps of a rendering: lines of the template and calls of Python functions. Usually there are hundreds."""
MOST_CHARACTERS = 10_000_000
REMEDY = "mend the chat template, or take the tokenizer of another upload"


def render_chat(
    tokenizer: Tokenizer, conversation: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **options: bool
) -> str:
    """Render a conversation with the tokenizer's chat template; `options` are passed to the template.

    Raises:
        ModelError: the template raises an error, does not end within MOST_STEPS steps, or does not return a text of at
            most MOST_CHARACTERS characters.
    """
    with foreign("the tokenizer", "its chat template cannot be rendered", REMEDY), _bounded():
        text: object = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        wrong = f"{len(text):,} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise ModelError(
            f"the tokenizer: its chat template writes {wrong}, expected a text of at most {MOST_CHARACTERS:,} "
            f"characters; {REMEDY}"
        )
    return text


@contextmanager
def _bounded() -> Iterator[None]:
    """Raise a ModelError in the block once it has taken MOST_STEPS steps of Python in this thread."""
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise ModelError(
                f"the tokenizer: its chat template has not ended after {MOST_STEPS:,} steps and may have no end; "
                f"{REMEDY}"
            )
        return count if frame.f_code.co_filename == "<template>" else None  # only calls are counted in other code

    before = sys.gettrace()  # a debugger or a coverage tool, which does not see the block
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)
