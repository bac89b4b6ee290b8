"""Where the real corpora are, which may not be redistributed: tests that read them skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("SPANTUNE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
