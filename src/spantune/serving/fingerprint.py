"""The fingerprint of a run: what tells its answers from those of a run that was trained otherwise."""

from __future__ import annotations

import hashlib

from spantune.extraction import Extractor
from spantune.models import hash_files
from spantune.runs import RunFolder, trained_files


def fingerprint_of(extractor: Extractor) -> str:
    """Return 12 hex digits of a SHA-256 over the hashes of what the run trained; without a run of its task."""
    if extractor.run is None:
        return hashlib.sha256(extractor.task.model_dump_json().encode()).hexdigest()[:12]
    folder = RunFolder(extractor.run).adapter
    hashes = hash_files(folder, [path.name for path in trained_files(folder)])
    lines = (f"{name}\t{value}\n" for name, value in hashes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
