"""The wording of prompts: presets, generated instructions, and the two shapes of a chat."""

from __future__ import annotations

import re

import pytest

from spantune.core import ConfigError, Label, TaskSpec, config
from spantune.encoding import PRESETS, answer_format, make_task
from spantune.encoding.prompts import instruction_for, messages, tutorial_prompt


def task(**values: object) -> TaskSpec:
    return make_task(config.Task.model_validate(values))


def example(instruction: str) -> str:
    found = re.search(r'\{"entity_text".*?\}', instruction)
    assert found is not None
    return found[0]


def test_the_cmeee_preset_names_all_nine_types_and_shows_a_line_of_the_format() -> None:
    spec = task(preset="cmeee")
    assert spec.codes == ("dis", "sym", "pro", "equ", "dru", "ite", "bod", "dep", "mic")
    for label in spec.labels:
        assert label.description and f"{label.name}({label.code})" in spec.instruction
    assert (spec.answer, spec.template, spec.language, spec.empty_answer) == ("jsonl", "chat", "zh", "")
    parsed = answer_format(spec).parse(example(spec.instruction) + "\n", "行房室结消融治疗", spec)
    assert [(e.start, e.end, e.label) for e in parsed.entities] == [(1, 6, "pro")] and not parsed.problems


def test_the_tutorial_preset_keeps_its_flaws() -> None:
    spec = task(preset="cmeee_tutorial")
    assert (spec.answer, spec.template, spec.empty_answer) == ("jsonl_seed", "tutorial", "没有找到任何实体")
    parsed = answer_format(spec).parse(example(spec.instruction), "我在南京", spec)
    assert [problem.kind for problem in parsed.problems] == ["label"]
    assert spec.empty_answer in spec.instruction


def test_every_preset_is_a_choice_of_the_recipe_and_makes_a_task() -> None:
    for name in PRESETS:
        assert task(preset=name).labels
    assert task(preset="biomedical").language == "en"
    with pytest.raises(ValueError, match="preset"):
        task(preset="other")


def test_a_made_instruction_lists_names_and_descriptions_where_there_are_any() -> None:
    labels = (Label(code="a", name="Drug", description="any drug"), Label(code="b", name="b"), Label(code="c"))
    english = instruction_for(labels, "en").split("\n")
    assert english[1:4] == ["- a (Drug): any drug", "- b", "- c"]
    assert english[5] == '{"entity_text": "words of the text", "entity_label": "a"}'
    assert instruction_for(labels, "zh").split("\n")[1:4] == ["- a (Drug)：any drug", "- b", "- c"]


def test_own_labels_replace_the_instruction_that_names_the_presets() -> None:
    spec = task(preset="cmeee", labels=["drug"])
    assert spec.codes == ("drug",) and spec.language == "zh"
    assert "- drug" in spec.instruction and "房室结消融" not in spec.instruction and "请从" in spec.instruction
    assert task(preset="cmeee", labels=["drug"], language="en").instruction.startswith("Find every entity")
    assert task(preset="cmeee", labels=["drug"], instruction="找药").instruction == "找药"
    assert task(preset="cmeee", instruction="找病").codes == task(preset="cmeee").codes


def test_without_a_preset_labels_are_enough() -> None:
    spec = task(labels=["x", {"code": "y", "description": "why"}])
    assert (spec.language, spec.answer, spec.template) == ("en", "jsonl", "chat")
    assert "- x\n- y: why" in spec.instruction
    assert task(labels=["x"], language="zh", empty_answer="无").empty_answer == "无"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": ["a", "b", "a"]}, "task.labels: label codes must be unique; repeated: a"),
        ({"labels": ["a"], "instruction": ""}, "task.instruction: String should have at least 1 character"),
    ],
)
def test_parts_that_make_no_task_are_the_recipes_fault(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        task(**values)
    assert message in str(caught.value)


def test_messages_with_and_without_a_system_role() -> None:
    spec = task(labels=["x"], instruction="Find x.")
    assert messages(spec, "text") == [
        {"role": "system", "content": "Find x."},
        {"role": "user", "content": "text"},
    ]
    assert messages(spec, "text", system=False) == [{"role": "user", "content": "Find x.\n\ntext"}]


def test_the_tutorials_prompt_is_its_literal_string() -> None:
    spec = task(preset="cmeee_tutorial", instruction="找实体。")
    assert (
        tutorial_prompt(spec, "发热") == "<|im_start|>user<im_sep>找实体。发热<|im_end|><|im_start|>assistant<im_sep>"
    )


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize(
    ("answer", "example"),
    [
        ("jsonl", '"entity_label": "dis"}'),
        ("jsonl_seed", '"entity_label": "dis"}'),
        ("grouped", '{"dis": ["'),
        ("inline", "<dis>"),
    ],
)
def test_the_instruction_shows_the_answer_format(language: str, answer: str, example: str) -> None:
    made = make_task(config.Task.model_validate({"labels": ["dis", "sym"], "language": language, "answer": answer}))
    preset = make_task(config.Task.model_validate({"preset": "cmeee", "answer": answer}))
    assert made.answer == preset.answer == answer and example in made.instruction
    assert example.replace("dis", "pro") in preset.instruction and "疾病(dis)" in preset.instruction
    assert all(sign not in made.instruction + preset.instruction for sign in ("EXAMPLE", "{how}", "{none}", "{{"))


@pytest.mark.parametrize("answer", ["jsonl", "grouped", "inline"])
def test_a_task_whose_entities_do_not_overlap_says_so(answer: str) -> None:
    for values, nested, flat in (
        ({"labels": ["x"], "language": "en"}, "Entities may be nested", "Entities do not overlap"),
        ({"labels": ["x"], "language": "zh"}, "实体可以嵌套", "实体之间互不重叠"),
        ({"preset": "cmeee"}, "实体可以嵌套", "实体之间互不重叠"),
    ):
        usual, other = task(**values, answer=answer), task(**values, answer=answer, nested=False)
        assert usual.nested and not other.nested and nested in usual.instruction and "overlap" not in usual.instruction
        assert other.instruction == usual.instruction.replace(nested, flat)
