"""The wording of prompts: presets, instructions made from a label set, and chat messages.

No other module has wording. A TaskSpec holds the finished instruction, so that a changed preset never changes a run
that is already trained. `encoder` turns messages into tokens.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from spantune.core import ConfigError, Label, TaskSpec, config

CMEEE_LABELS = (
    Label(code="dis", name="疾病", description="疾病、综合征、损伤、中毒和作为诊断的病理状态"),
    Label(code="sym", name="临床表现", description="症状和体征，可以嵌套身体部位、检验项目或微生物"),
    Label(code="pro", name="医疗程序", description="检查、治疗、手术和预防措施"),
    Label(code="equ", name="医疗设备", description="检查和治疗用的器械、材料和设备"),
    Label(code="dru", name="药物", description="药物、药物类别、疫苗和输注液体"),
    Label(code="ite", name="医学检验项目", description="检验项目、生命体征和可测量的指标"),
    Label(code="bod", name="身体", description="身体部位、器官、组织、细胞和体内物质"),
    Label(code="dep", name="科室", description="医院科室"),
    Label(code="mic", name="微生物类", description="细菌、病毒、真菌、寄生虫等病原体"),
)
BIOMEDICAL_LABELS = (
    Label(code="chemical", name="Chemical", description="drugs and other chemical substances, abbreviations included"),
    Label(code="disease", name="Disease", description="diseases, syndromes, symptoms and adverse effects"),
)

_CMEEE = """\
你是医学文本实体识别专家。请从给定的句子中找出全部下列类型的实体：{labels}。
{how}
实体必须是句子里的原文，一字不改；{nested}；同一实体出现几次就输出几次；没有实体时{none}。"""
_CMEEE_HOW = {
    "jsonl": """\
按实体在句中出现的先后，每个实体输出一行 JSON，例如：
{"entity_text": "房室结消融", "entity_label": "pro"}""",
    "grouped": """\
输出一个 JSON 对象，从每个出现的类型到它的实体列表，列表按实体在句中出现的先后，例如：
{"pro": ["房室结消融"]}""",
    "inline": """\
逐字抄写句子，用类型作标签标出每个实体，句中的 & 写作 &amp;，< 写作 &lt;，例如：
行<pro>房室结消融</pro>。""",
}

# A paraphrase that keeps the faults of the tutorial's prompt: it does not say what a label covers, and the label of its
# example (地理实体) is not in the label set.
_TUTORIAL = """\
你是医学文本实体识别领域的专家，需要从给定的句子里提取 {labels} 这些类型的实体。用 json 格式输出，\
例如 {{"entity_text": "南京", "entity_label": "地理实体"}}。注意：1. 每一行输出都必须是正确的 json 字符串。\
2. 如果没有找到任何实体，就输出"没有找到任何实体"。"""

_GENERIC = {
    "zh": """\
请从给定的文本中找出全部下列类型的实体：
{labels}
{how}
实体必须是文本里的原文，一字不改；{nested}；没有实体时{none}。""",
    "en": """\
Find every entity of these types in the given text:
{labels}
{how}
Copy each entity exactly as it stands in the text. {nested}. If there is none, {none}.""",
}
_HOW = {
    "zh": {
        "jsonl": """\
按实体在文中出现的先后，每个实体输出一行 JSON，例如：
{"entity_text": "原文中的一段", "entity_label": "EXAMPLE"}""",
        "grouped": """\
输出一个 JSON 对象，从每个出现的类型到它的实体列表，列表按实体在文中出现的先后，例如：
{"EXAMPLE": ["原文中的一段"]}""",
        "inline": """\
逐字抄写全文，用类型作标签标出每个实体，文中的 & 写作 &amp;，< 写作 &lt;，例如：
……<EXAMPLE>原文中的一段</EXAMPLE>……""",
    },
    "en": {
        "jsonl": """\
Write one JSON object a line for each entity, in the order of the text, such as:
{"entity_text": "words of the text", "entity_label": "EXAMPLE"}""",
        "grouped": """\
Write one JSON object, from each type that occurs to the list of its entities in the order of the text, such as:
{"EXAMPLE": ["words of the text"]}""",
        "inline": """\
Copy the text word for word and mark each entity with tags of its type, & written as &amp; and < as &lt;, such as:
... <EXAMPLE>words of the text</EXAMPLE> ...""",
    },
}
_NONE = {
    "zh": {"jsonl": "不输出任何内容", "grouped": "输出 {}", "inline": "照抄全文"},
    "en": {"jsonl": "write nothing", "grouped": "write {}", "inline": "copy the text as it is"},
}

_NESTED = {
    "zh": {True: "实体可以嵌套", False: "实体之间互不重叠"},
    "en": {True: "Entities may be nested", False: "Entities do not overlap"},
}

PRESETS: dict[str, dict[str, Any]] = {
    "cmeee": {
        "labels": CMEEE_LABELS,
        "language": "zh",
    },
    "cmeee_tutorial": {
        "labels": CMEEE_LABELS,
        "instruction": _TUTORIAL.format(labels="; ".join(label.code for label in CMEEE_LABELS)),
        "language": "zh",
        "answer": "jsonl_seed",
        "empty_answer": "没有找到任何实体",
        "template": "tutorial",
    },
    "biomedical": {"labels": BIOMEDICAL_LABELS, "language": "en"},
}


def make_task(settings: config.Task) -> TaskSpec:
    """Make the TaskSpec from the section `task` of a recipe.

    The preset's values come first, then the values of the section. If neither has an instruction, one is made from the
    labels.

    Raises:
        ConfigError: the values are no valid task, for example because a label code is repeated.
    """
    values = {"language": "en", **PRESETS.get(settings.preset or "", {})}
    given = settings.model_dump(exclude_none=True, exclude={"preset"})
    if "labels" in given and "instruction" not in given:
        values.pop("instruction", None)  # a preset's instruction names the preset's labels
    values |= given
    try:
        if "instruction" not in values:
            answer = values.get("answer", "jsonl")
            labels = tuple(map(Label.model_validate, values["labels"]))
            is_cmeee = settings.preset == "cmeee" and "labels" not in given and answer != "spans"
            nested = settings.nested
            values["instruction"] = (
                _cmeee(answer, nested=nested)
                if is_cmeee
                else instruction_for(labels, values["language"], answer, nested=nested)
            )
        return TaskSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("task", *first["loc"])))
        raise ConfigError(f"{key}: {first['msg'].removeprefix('Value error, ')}; mend it in the recipe") from None


def instruction_for(labels: tuple[Label, ...], language: str, answer: str = "jsonl", *, nested: bool = True) -> str:
    """Return an instruction for any label set and answer format, with the names and descriptions of the labels.

    For the answer `spans` the instruction only lists the types, since no answer is written. `language` is `zh` or `en`.
    """
    lines = []
    for label in labels:
        name = f" ({label.name})" if label.name and label.name != label.code else ""
        colon = "：" if language == "zh" else ": "
        lines.append(f"- {label.code}{name}{colon + label.description if label.description else ''}")
    if answer == "spans":
        return f"{_GENERIC[language].splitlines()[0]}\n{chr(10).join(lines)}"
    form = _form(answer)
    how = _HOW[language][form].replace("EXAMPLE", labels[0].code)
    none, overlaps = _NONE[language][form], _NESTED[language][nested]
    return _GENERIC[language].format(labels="\n".join(lines), how=how, none=none, nested=overlaps)


def messages(task: TaskSpec, text: str, system: bool = True) -> list[dict[str, str]]:
    """Return the chat that asks for the entities of `text`; without `system` the instruction is in the user's turn."""
    if system:
        return [{"role": "system", "content": task.instruction}, {"role": "user", "content": text}]
    return [{"role": "user", "content": f"{task.instruction}\n\n{text}"}]


def tutorial_prompt(task: TaskSpec, text: str) -> str:
    """Return the tutorial's prompt as it is: `<im_sep>` instead of Phi-4's `<|im_sep|>`, and no system role."""
    return f"<|im_start|>user<im_sep>{task.instruction}{text}<|im_end|><|im_start|>assistant<im_sep>"


def _cmeee(answer: str, *, nested: bool) -> str:
    form = _form(answer)
    labels = "、".join(f"{label.name}({label.code})" for label in CMEEE_LABELS)
    return _CMEEE.format(labels=labels, how=_CMEEE_HOW[form], none=_NONE["zh"][form], nested=_NESTED["zh"][nested])


def _form(answer: str) -> str:
    """Return the answer format whose wording is used; `jsonl_seed` has the wording of `jsonl`."""
    return answer.removesuffix("_seed")
