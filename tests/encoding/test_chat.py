"""Chat templates are rendered within limits, and a template that fails gives one error."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from helpers.fakes import CHATML, byte_tokenizer
from spantune.core import Label, ModelError, TaskSpec
from spantune.encoding import Encoder, render_chat

CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
TASK = TaskSpec(labels=(Label(code="dis"),), instruction="Find.")
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def tokenizer_with(template: Any) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ENDLESS, "has not ended after 1,000,000 steps and may have no end"),
        ("{{ lipsum(n=10**9) }}", "has not ended after 1,000,000 steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be rendered (RecursionError: "),
        ("{{ 'ab' * 6000000 }}", "writes 12,000,000 characters, expected a text of at most 10,000,000"),
        ("{{ 1 / 0 }}", "cannot be rendered (ZeroDivisionError: division by zero)"),
        ("{{ messages[0].content + 1 }}", "cannot be rendered (TypeError: "),
        ("{{ nothing.here }}", "cannot be rendered (UndefinedError: 'nothing' is undefined)"),
        ("{% for %}", "cannot be rendered (TemplateSyntaxError: "),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered (SecurityError: "),
        (5, "cannot be rendered (TypeError: "),
        ([1], "cannot be rendered (TypeError: "),
    ],
)
def test_a_template_that_fails_is_one_error(template: Any, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        render_chat(tokenizer_with(template), CHAT, add_generation_prompt=True)
    assert f"the tokenizer: its chat template {said}" in str(caught.value) and "\n" not in str(caught.value)


def test_the_encoder_says_why_a_template_renders_nothing() -> None:
    for template, why in ((ENDLESS, "may have no end"), ("{{ raise_exception('never') }}", "TemplateError: never")):
        with pytest.raises(ModelError, match=f"renders neither the instruction nor the text: .*{why}"):
            Encoder(tokenizer_with(template), TASK)


def test_a_template_is_rendered_as_it_is_and_a_trace_goes_on() -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        text = render_chat(tokenizer_with(CHATML), CHAT, add_generation_prompt=True, enable_thinking=False)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert text == tokenizer_with(CHATML).apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
