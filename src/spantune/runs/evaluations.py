"""The predictions of `spantune evaluate` in a run folder; `inputs.json` records the corpus of each file.

The predictions for two corpora never share a file: if the name of the corpus file is already used for another corpus,
a part of a hash is added to the name. Only predictions for the same path with the same documents are replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spantune.core import Document, RunError, hash_documents, masked, replace_text, to_json
from spantune.runs.folder import RunFolder

RECORD = "inputs.json"
_LONGEST_STEM = 150  # bytes; file systems allow 255 for a name, including the ending and a hash


@dataclass(frozen=True)
class Evaluated:
    """A file of predictions and the corpus that they are for.

    Args:
        file: the name of the file in `predictions/`.
        data: the path of the corpus, or `bundled:NAME`, with credentials masked.
        sha256: the hash of its documents (`core.hash_documents`).
        documents: the number of its documents.
    """

    file: str
    data: str
    sha256: str
    documents: int


def evaluated(run: Path) -> list[Evaluated]:
    """Return the predictions of `spantune evaluate` in the run folder `run`, the newest last.

    Raises:
        RunError: `inputs.json` is damaged.
    """
    path = RunFolder(run).predictions_folder / RECORD
    try:
        return [Evaluated(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it, and evaluate again what it was of") from None


def predictions_for(run: Path, documents: Sequence[Document]) -> Path | None:
    """Return the newest file of predictions of `spantune evaluate` for `documents` in a run; None if there is none.

    Raises:
        RunError: `inputs.json` is damaged.
    """
    digest = hash_documents(documents)
    files = [RunFolder(run).predictions_folder / entry.file for entry in evaluated(run) if entry.sha256 == digest]
    return next((file for file in reversed(files) if file.is_file()), None)


def name_predictions(run: Path, data: str, documents: Sequence[Document]) -> Path:
    """Choose a file for the predictions on a corpus, record it in `inputs.json`, and return its path.

    Args:
        run: the run folder.
        data: the path of the corpus, or `bundled:NAME`.
        documents: the documents of the corpus.

    Raises:
        RunError: `inputs.json` is damaged or cannot be written.
    """
    folder = RunFolder(run).predictions_folder
    source = data if data.startswith("bundled:") else str(Path(data).resolve())
    entry = Evaluated("", masked(source), hash_documents(documents), len(documents))
    earlier = evaluated(run)
    known = next((other for other in earlier if (other.data, other.sha256) == (entry.data, entry.sha256)), None)
    digest = hashlib.sha256(f"{source}\0{entry.sha256}".encode()).hexdigest()
    name = known.file if known else _free_name(folder, data, digest)
    entries = [other for other in earlier if other.file != name]
    record = [asdict(other) for other in (*entries, Evaluated(name, entry.data, entry.sha256, entry.documents))]
    try:
        folder.mkdir(exist_ok=True)
        replace_text(folder / RECORD, to_json(record, indent=1) + "\n")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); make it writable, or copy the run") from None
    return folder / name


def _free_name(folder: Path, data: str, digest: str) -> str:
    """Return an unused file name: that of the corpus, if necessary with a part of the hash `digest`.

    It is never a name that training uses, such as `dev-100.jsonl`.
    """
    stem = Path(data.replace(":", "-")).stem or Path(data).resolve().stem
    stem = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
    split, _, step = stem.rpartition("-")
    if split in ("dev", "test") and step.isdecimal():
        stem = f"corpus-{stem}"
    names = [f"{stem}.jsonl", *(f"{stem}.{digest[:digits]}.jsonl" for digits in (8, 16, 32, 64))]
    return next(name for name in names if not (folder / name).exists())
