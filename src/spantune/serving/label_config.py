"""A Label Studio project's labelling interface: which of its tags hold the text and the labels of a run.

The XML comes from anyone who may edit the project. It is parsed by expat. A document type is refused, so no XML entity
is ever expanded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

from spantune.core import DataError, Label

_VARIABLE = re.compile(r"\$([^\s{}$]+)")
_REMEDY = "give the project an interface with <Labels> on a <Text>"


@dataclass(frozen=True, slots=True)
class Interface:
    """The pair of a <Labels> and a <Text> tag that is used, and the names of its labels.

    Args:
        from_name: the name of the tag with the labels.
        to_name: the name of the tag with the text.
        key: the field of a task's data that holds the text.
        is_link: whether that field holds a link to the text instead of the text.
        label_of: the project's label for each code of the run that has one, as annotations state it.
        code_of: the run's code for each form in which the project may state its label.
        unmatched: the codes of the run for which the project has no label.
        foreign: the labels of the project that the run does not have.
    """

    from_name: str
    to_name: str
    key: str
    is_link: bool
    label_of: Mapping[str, str]
    code_of: Mapping[str, str]
    unmatched: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """Labels without a counterpart, in sentences for a person; empty if every label has one."""
        said = []
        if self.unmatched:
            said.append(
                f"the project has no label for {', '.join(self.unmatched)} of the run: such entities are not shown; "
                "add a <Label> whose value or alias is the code or the name of the label"
            )
        if self.foreign:
            said.append(
                f"the run does not know {', '.join(self.foreign)} of the project: it never predicts them, and they "
                "are left out of corrections"
            )
        return said


@dataclass(slots=True)
class _Tags:
    """The tags of the XML: <Text> tags, and <Labels> tags with the attributes of their <Label> tags."""

    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    hypertexts: set[str] = field(default_factory=set)
    labels: list[tuple[dict[str, str], list[dict[str, str]]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)


def read_interface(xml: str, labels: Sequence[Label]) -> Interface:
    """Return the pair of <Labels> and <Text> that matches the most of `labels`; of equals, the first.

    Labels of the project are compared with code and name of the run's labels, first exactly and then without regard to
    case. A project states a label as value or alias.

    Raises:
        DataError: the XML cannot be parsed or has a document type, no <Labels> belongs to a <Text>, or no label
            matches.
    """
    tags = _parsed(xml)
    pairs = [
        _pair(attributes, stated, tags.texts[target], labels)
        for attributes, stated in tags.labels
        for target in re.split(r"\s*,\s*", attributes.get("toName", ""))
        if target in tags.texts
    ]
    if pairs and not any(pair.key for pair in pairs):
        raise DataError(
            'the value of the <Text> tag is not one field of the task, such as value="$text": name the field that '
            "holds the text"
        )
    pairs = [pair for pair in pairs if pair.key]
    if not pairs:
        hint = "; its <HyperText> is shown as a page, in which offsets of the text mean nothing" * bool(tags.hypertexts)
        raise DataError(f"the labelling interface has no <Labels> that belongs to a <Text>{hint}: {_REMEDY}")
    best = max(pairs, key=lambda pair: len(pair.label_of))
    if not best.label_of:
        raise DataError(
            f"the labels of the labelling interface, {', '.join(best.foreign[:20]) or 'none'}, are none of the run's, "
            f"{', '.join(label.code for label in labels)}: give a <Label> the code or the name of one as value or alias"
        )
    return best


def _pair(
    attributes: Mapping[str, str], stated: Sequence[Mapping[str, str]], text: Mapping[str, str], labels: Sequence[Label]
) -> Interface:
    """Return the Interface for one <Labels> tag, with its `stated` labels, and one <Text> tag."""
    code_by_name: dict[str, str] = {}
    for fold in (str, str.casefold):  # equal names come before names that differ only in case
        for names in ([label.code for label in labels], [label.name for label in labels]):
            for label, name in zip(labels, names, strict=True):
                if name:
                    code_by_name.setdefault(fold(name.strip()), label.code)
    label_of: dict[str, str] = {}
    code_of: dict[str, str] = {}
    foreign = []
    for tag in stated:
        names = [name for name in (tag.get("alias"), tag.get("value")) if name]
        folded = [name.strip() for name in names] + [name.strip().casefold() for name in names]
        code = next((code_by_name[name] for name in folded if name in code_by_name), None)
        if code is None:
            foreign += names[:1]
            continue
        label_of.setdefault(code, names[0])  # an annotation states the alias if there is one
        code_of |= {name: code for name in names if name not in code_of}
    variable = _VARIABLE.fullmatch(text.get("value", "").strip())
    return Interface(
        attributes.get("name", ""),
        text["name"],
        variable.group(1) if variable else "",
        text.get("valueType", text.get("valuetype", "")) == "url",
        label_of,
        code_of,
        tuple(label.code for label in labels if label.code not in label_of),
        tuple(foreign),
    )


def _parsed(xml: str) -> _Tags:
    tags = _Tags()

    def start(tag: str, attributes: dict[str, str]) -> None:
        tags.open.append(tag)
        if tag == "Text" and attributes.get("name"):
            tags.texts[attributes["name"]] = attributes
        elif tag == "HyperText":
            tags.hypertexts.add(attributes.get("name", ""))
        elif tag in ("Labels", "HyperTextLabels"):
            tags.labels.append((attributes, []))
        elif tag == "Label" and tags.labels and {"Labels", "HyperTextLabels"} & set(tags.open):
            tags.labels[-1][1].append(attributes)

    def refuse(*_: object) -> None:
        raise DataError("the labelling interface has a document type (<!DOCTYPE …>), which is not read: remove it")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: tags.open.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xml.encode(errors="replace"), True)
    except expat.ExpatError as error:
        raise DataError(f"the labelling interface is not XML: {error}: {_REMEDY}") from None
    return tags
