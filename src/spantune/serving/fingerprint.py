"""The fingerprint of a run: a short hash by which its answers can be told from those of a differently trained run."""

from __future__ import annotations

import hashlib

from spantune.extraction import Extractor
from spantune.models import hash_files
from spantune.runs import RunFolder, trained_files


def fingerprint_of(extractor: Extractor) -> str:
    """Return 12 hex digits of the SHA-256 of a run's trained files, or of the task if there is no run folder."""
    if extractor.run is None:
        return hashlib.sha256(extractor.task.model_dump_json().encode()).hexdigest()[:12]
    folder = RunFolder(extractor.run).adapter
    hashes = hash_files(folder, [path.name for path in trained_files(folder)])
    lines = (f"{name}\t{value}\n" for name, value in hashes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
