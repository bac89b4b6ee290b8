"""Tables that the commands print for people: plans, scores, comparisons, statistics and splits.

Programs should read the JSON that the commands print, since the tables may change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from spantune.core import print_table, print_text, put, visible

if TYPE_CHECKING:
    from rich.text import Text

    from spantune.core import Document
    from spantune.data import Bin, Statistics
    from spantune.encoding import Tokens
    from spantune.metrics import Comparison

Record = Mapping[str, Any]
"""A JSON object as the method `as_dict` of a plan, scores or another result returns it."""


# Named colours follow the theme of the terminal. The name of the label is always printed too.
_NAMES = ("blue", "red", "green", "magenta", "yellow", "cyan")
COLOURS = (*_NAMES, *(f"bright_{name}" for name in _NAMES))
_BAR = 40


def print_plan(plan: Record) -> None:
    """Print the audits, the warnings and the estimate of a plan (`training.Plan.as_dict`)."""
    marks = {True: "ok", False: "FAILED"}
    rows = [
        (
            f"waived by {audit['waived']}" if audit["waived"] and not audit["ok"] else marks[audit["ok"]],
            audit["name"],
            audit["found"] if audit["ok"] else f"{audit['found']} → {audit['remedy']}",
        )
        for audit in plan["audits"]
    ]
    rows += [("warning", warning["name"], f"{warning['found']} → {warning['remedy']}") for warning in plan["warnings"]]
    print_table(["", "audit", "found"], rows)
    remarks = {
        "minutes": "with the evaluations on dev; loading, and measuring the test documents, come on top",
        "pack_tokens": "of a pack, at the most",
        "ranks": "memory, tokens and time are those of one of them",
        "sent_gib": "by each rank in a step, counted at 20 GB/s",
    }
    figures = [
        (key.replace("_", " "), f"{value} ({remarks[key]})" if key in remarks else str(value))
        for key, value in plan["estimate"].items()
    ]
    print_table(["predicted", ""], figures)


def print_scores(scores: Record, stream: TextIO | None = None, on: str = "") -> None:
    """Print strict scores with their intervals, overall and for each label.

    Args:
        scores: the scores (`metrics.Scores.as_dict`).
        stream: where to print; stdout if None.
        on: which documents the scores are for, in words; "" to leave it out.
    """
    strict = scores["strict"]
    macro = ("mean of labels (macro)", *_quotients(strict["macro"]), "")
    rows = [_figure("all (micro)", strict["micro"]), macro]
    rows += [_figure(label, figure) for label, figure in strict["labels"].items()]
    name = "strict" if scores["protocol"] == "cblue" else f"strict, {scores['protocol']}"
    name += f", on {on}" if on else ""
    print_table([name, "P", "R", "F1", "95 %", "gold"], rows, stream)


def print_slices(scores: Record, stream: TextIO | None = None) -> None:
    """Print the figures of lenient matching, the slices and the false alarms of scores (`metrics.Scores.as_dict`)."""
    kinds = {
        "boundary": "right place, any label",
        "relaxed": "overlap, right label",
        "partial": "overlap is half, any label",
    }
    rows = [_figure(name, scores[kind]) for kind, name in kinds.items()]
    print_table(["forgiving", "P", "R", "F1", "95 %", "gold"], rows, stream)
    rows = [
        _figure(f"{kind} {name}", figure)
        for kind, figures in scores["slices"].items()
        for name, figure in figures.items()
    ]
    if rows:
        print_table(["slice", "P", "R", "F1", "95 %", "gold"], rows, stream)
    if alarms := scores["alarms"]:
        count = f"{alarms['predicted']} entities in {alarms['documents']} documents without any"
        low, high = alarms["per_1000_low"], alarms["per_1000_high"]
        interval = f", 95 % {low:.2f}–{high:.2f}" if low is not None else ", without an interval: few documents"
        print_table(["false alarms", count], [("per 1,000 characters", f"{alarms['per_1000']:.2f}{interval}")], stream)


def print_comparison(comparison: Comparison) -> None:
    """Print F1 of every system, then for each difference its figures, overall and for each label, and its meaning."""
    from spantune.metrics import TOO_FEW

    rows = [(visible(name), *_quotients(scores.micro.as_dict())) for name, scores in comparison.systems.items()]
    print_table([f"strict, {comparison.protocol}", "P", "R", "F1", "95 %"], rows)
    for difference in comparison.differences:
        gaps = {"all (micro)": difference.micro, **difference.labels}
        rows = [
            (name, f"{gap.f1:+.3f}", TOO_FEW if gap.f1_low is None else f"{gap.f1_low:+.3f} to {gap.f1_high:+.3f}",
             f"{gap.p:.4f}", f"{gap.p_holm:.4f}", "real" if gap.real else "")
            for name, gap in gaps.items()
        ]  # fmt: skip
        put("")
        print_table([visible(f"{difference.second} less {difference.first}"), "F1", "95 %", "p", "p (Holm)", ""], rows)
        put(visible(difference.sentence))


def _figure(name: str, figure: Record) -> tuple[str, ...]:
    return (name, *_quotients(figure), str(figure["gold"]))


def _quotients(figure: Record) -> tuple[str, ...]:
    """Return precision, recall, F1 and the interval of F1 as text."""
    from spantune.metrics import TOO_FEW

    has_entities = figure.get("gold", figure["f1"]) or figure.get("predicted")
    interval = TOO_FEW if has_entities else ""
    if figure["f1_low"] is not None:
        interval = f"{figure['f1_low']:.3f}–{figure['f1_high']:.3f}"
    return (*(f"{figure[key]:.3f}" for key in ("precision", "recall", "f1")), interval)


def print_statistics(statistics: Statistics, title: str, notes: Mapping[str, str]) -> None:
    """Print the statistics of a corpus: counts, entities of each label, ambiguous surfaces, and histograms of lengths.

    Args:
        statistics: the statistics.
        title: the name of the corpus.
        notes: name to text for the first rows.
    """
    entities = sum(statistics.entities.values())
    figures = {
        **notes,
        "documents": str(statistics.documents),
        "sentences": str(statistics.sentences),
        "without entities": str(statistics.without_entities),
        "texts that an earlier document has": str(statistics.duplicates),
        "entities": str(entities),
        "nested in a longer one": f"{statistics.nested} ({statistics.nested / (entities or 1):.1%})",
        "by depth": ", ".join(f"{depth}: {count}" for depth, count in statistics.depths.items()) or "none",
        "crossing pairs": str(statistics.crossing),
        "spans with several labels": str(statistics.shared_spans),
        "surface occurs twice in its text": f"{statistics.repeated_surfaces:.1%}",
        "surfaces with several labels": f"{statistics.ambiguous_surfaces} of {statistics.surfaces}",
    }
    print_table(["", title], list(figures.items()))
    _bars("entities of type", statistics.entities, list(statistics.entities))
    ambiguous = [
        (visible(surface), ", ".join(f"{count} {label}" for label, count in counts.items()))
        for surface, counts in statistics.ambiguous.items()
    ]
    if ambiguous:
        put("")
        print_table(["surface", "labels"], ambiguous)
    _histogram("characters of a document", statistics.characters)
    _histogram("characters of an entity", statistics.entity_characters)


def print_tokens(tokens: Tokens, tokenizer: str) -> None:
    """Print the token counts of a corpus and, if a task was given, the shares of instruction, text and answer.

    Args:
        tokens: the counts.
        tokenizer: the source of the tokenizer.
    """
    figures = [("tokens of all texts", str(tokens.total)), ("longest text", str(tokens.longest))]
    shares = {"instruction": tokens.instruction_share, "text": tokens.text_share, "answer": tokens.answer_share}
    figures += [(f"{name}, of all tokens", f"{share:.1%}") for name, share in shares.items() if share is not None]
    print_table(["", tokenizer], figures)
    _histogram("tokens of a text", tokens.texts)
    _histogram("tokens of an example", tokens.examples)


def print_examples(documents: Iterable[Document], labels: Sequence[str]) -> None:
    """Print documents, each entity in brackets that end in its label, in the colour of the label; see `drawn`."""
    from rich.text import Text

    for document in documents:
        print_text(Text(f"\n{visible(document.id)}", style="bold"))
        print_text(drawn(document, labels))


def drawn(document: Document, labels: Sequence[str]) -> Text:
    """Return the text of a document with its entities in coloured brackets, such as `[diabetes|dis]`.

    The brackets of crossing entities cross.

    Args:
        document: the document.
        labels: the label codes, whose order determines the colours. Other labels have no colour.
    """
    from rich.text import Text

    def style(label: str) -> str:
        return COLOURS[labels.index(label) % len(COLOURS)] if label in labels else "none"

    text = Text()
    places = {0, len(document.text)} | {place for entity in document.entities for place in (entity.start, entity.end)}
    ordered = sorted(places)
    for place, end in zip(ordered, [*ordered[1:], len(document.text)], strict=True):
        for entity in sorted((entity for entity in document.entities if entity.end == place), reverse=True):
            text.append(f"|{visible(entity.label)}]", style=f"bold {style(entity.label)}")
        starting = [entity for entity in document.entities if entity.start == place]
        for entity in sorted(starting, key=lambda entity: (-entity.end, entity.label)):
            text.append("[", style=f"bold {style(entity.label)}")
        around = [entity for entity in document.entities if entity.start <= place < entity.end]
        inner = min(around, key=lambda entity: entity.end - entity.start, default=None)
        text.append(visible(document.text[place:end]), style=style(inner.label) if inner else "none")
    return text


def _histogram(title: str, bins: Sequence[Bin]) -> None:
    _bars(title, {bin_.name: bin_.count for bin_ in bins})


def _bars(title: str, counts: Mapping[str, int], labels: Sequence[str] = ()) -> None:
    """Print a table with a bar, a count and a share for each name; nothing if `counts` is empty."""
    from rich.bar import Bar

    if not counts:
        return
    most, total = max(counts.values()) or 1, sum(counts.values()) or 1
    rows = []
    for name, count in counts.items():
        colour = COLOURS[labels.index(name) % len(COLOURS)] if name in labels else "default"
        bar = Bar(most, 0, count, width=_BAR, color=colour)
        rows.append((visible(name), bar, str(count), f"{count / total:.1%}"))
    put("")
    print_table([title, "", "", ""], rows, right=(2, 3))


def print_split(record: Record) -> None:
    """Print the numbers and shares of documents and entities, overall and for each label, in each split.

    Args:
        record: the record of the split, the content of `split.json`.
    """

    def row(name: str, counts: dict[str, int]) -> tuple[str, ...]:
        total = sum(counts.values())
        return (name, str(total), *(f"{count} ({count / (total or 1):.1%})" for count in counts.values()))

    rows = [row("documents", record["documents"]), row("entities", record["entities"])]
    rows += [row(f"  {label}", counts) for label, counts in record["labels"].items()]
    print_table(["", "all", *record["documents"]], rows)
    summary = f"{len(record['near_duplicates'])} duplicates and near-duplicates, {len(record['groups'])} groups, "
    print_table([f"{summary}{record['left_out']} documents left out, seed {record['seed']}"], [])
