"""The rules of `spantune data check`: everything that can be wrong with a corpus, by name.

An error would be learned by a model, or would make a score wrong. A warning should be looked at. An info is a fact.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Severity = Literal["error", "warning", "info"]
RARE = 20
"""Labels with fewer entities are reported."""
LONG = 510
"""Texts with more characters are reported."""


class Rule(StrEnum):
    """A rule by its name, with the severity of its findings, whether `--fix` repairs them, and what they are.

    Reports list findings by severity, then in the order given here.
    """

    severity: Severity
    fixable: bool
    message: str

    def __new__(cls, name: str, severity: Severity, fixable: bool, message: str) -> Rule:
        """Make a member that is equal to its name as a string."""
        rule = str.__new__(cls, name)
        rule._value_ = name
        rule.severity, rule.fixable, rule.message = severity, fixable, message
        return rule

    # fmt: off
    UNREADABLE = ("unreadable", "error", False, "documents that cannot be read")
    LONE_SURROGATE = ("lone-surrogate", "error", False, "documents with half of a surrogate pair, which is not text")
    REPEATED_ID = ("repeated-id", "error", False, "documents with the id of an earlier one")
    SURFACE_MISMATCH = ("surface-mismatch", "error", True, "entities whose text is not what stands at their offsets")
    END_MISMATCH = ("end-mismatch", "error", True,
        "entities whose text begins at their start, but does not end at their end")
    EMPTY_SPAN = ("empty-span", "error", True, "entities that end where they start, or before")
    OUT_OF_RANGE = ("out-of-range", "error", True, "entities that reach outside their text")
    END_ONE_TOO_SMALL = ("end-one-too-small", "error", True, "ends that are one too small for an inclusive end")
    END_HALF_OPEN = ("end-half-open", "error", True, "half-open ends in a format of inclusive ends")
    BROKEN_TRANSITION = ("broken-transition", "error", True, "tags that continue an entity which nothing has begun")
    AMBIGUOUS_ID = ("ambiguous-id", "error", True, "entities with the id of another entity of their document")
    LEFT_OUT = ("left-out", "error", False, "documents and entities that could not be mended and were not written")
    LABEL_OUTSIDE = ("label-outside", "error", False, "entities with a label that the schema does not have")
    SHARED_TEXT = ("shared-text", "error", False,
        "texts that stand in several files: what is measured on them is learnt by heart")
    CONFLICTING_SHARED_TEXT = ("conflicting-shared-text", "error", False,
        "texts that stand in several files and are annotated differently")
    DUPLICATE_ANNOTATION = ("duplicate-annotation", "warning", True, "entities that repeat span and label of another")
    EDGE_SPACE = ("edge-space", "warning", True, "entities that begin or end with white space")
    CUT_WORD = ("cut-word", "warning", False, "entities that begin or end inside a word")
    OFFSET_UNIT = ("offset-unit", "warning", False,
        "entities without their text behind characters that some tools count as two: say with --offsets what counts")
    TWO_LABELS = ("two-labels", "warning", False, "spans with several labels")
    CROSSING = ("crossing", "warning", False, "entities that overlap another without one holding the other")
    BOUNDARY_INCONSISTENCY = ("boundary-inconsistency", "warning", False,
        "surfaces annotated sometimes with and sometimes without a word at their edge")
    LABEL_SPELLING = ("label-spelling", "warning", False, "labels that differ from another in case, width or blanks")
    LABEL_IN_ONE_FILE = ("label-in-one-file", "warning", False, "labels that only one of several files has")
    RARE_LABEL = ("rare-label", "warning", False, f"labels with fewer than {RARE} examples")
    DUPLICATE_TEXT = ("duplicate-text", "warning", False, "documents with the text of an earlier one of their file")
    CONFLICTING_DUPLICATE = ("conflicting-duplicate", "warning", False,
        "texts that stand in one file and are annotated differently")
    NEAR_DUPLICATE = ("near-duplicate", "warning", False, "texts that are nearly an earlier one of their file")
    CONFLICTING_NEAR_DUPLICATE = ("conflicting-near-duplicate", "warning", False,
        "texts that are nearly an earlier one of their file, but annotated differently")
    SHARED_NEAR_DUPLICATE = ("shared-near-duplicate", "warning", False, "texts that are nearly one of another file")
    CONFLICTING_SHARED_NEAR_DUPLICATE = ("conflicting-shared-near-duplicate", "warning", False,
        "texts that are nearly one of another file, but annotated differently")
    EMPTY_TEXT = ("empty-text", "warning", False, "texts that are empty or blank")
    CONTROL_CHARACTER = ("control-character", "warning", False, "texts with control characters or line separators")
    ZERO_WIDTH_CHARACTER = ("zero-width-character", "warning", False,
        "texts with characters that nobody sees: zero-width, soft hyphen, marks of direction")
    MIXED_NORMALISATION = ("mixed-normalisation", "warning", False,
        "texts that are not in Unicode's form NFC, where others are")
    TOO_LONG = ("too-long", "warning", False, "texts with more tokens than the budget")
    META_LEFT_OUT = ("meta-left-out", "warning", True,
        "fields of meta that no file can hold: half of a surrogate pair, or a number that is not finite")
    LINE_BREAK_AS_SPACE = ("line-break-as-space", "warning", True, "entities stated otherwise than the format says")
    WHITE_SPACE_IN_TEXT = ("white-space-in-text", "warning", True,
        "entities whose stated text differs from the document in white space")
    LONG_TEXT = ("long-text", "info", False,
        f"texts of more than {LONG} characters, which trainers made for sentences cut or drop")
    REPEATED_SURFACE = ("repeated-surface", "info", False,
        "entities whose surface stands more than once in their text: only offsets say which is meant")
    UNVERIFIED = ("unverified", "info", False, "entities without their text: their offsets cannot be verified")
    WITHOUT_ENTITIES = ("without-entities", "info", False, "documents without entities")
    NO_NEGATIVES = ("no-negatives", "info", False,
        "files without a document without entities: they cannot show false alarms")
    BYTE_ORDER_MARK = ("byte-order-mark", "info", True, "files that begin with a byte-order mark")
    CRLF = ("crlf", "info", True, "lines that end in CRLF")
    # fmt: on
