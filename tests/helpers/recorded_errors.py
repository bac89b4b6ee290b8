"""Record every error that the tests raise, for docs/errors.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TextIO

from spantune.core import SpantuneError

_SOURCE = str(Path(sys.modules["spantune"].__file__ or "").parent)


class ErrorRecorder:
    """Writes the type, message and source location of each error to a file, with a few messages per location."""

    MESSAGES = 20
    FRAMES = 6

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._messages: dict[tuple[tuple[str, int], ...], int] = {}
        self._init = SpantuneError.__init__

    def start(self) -> None:
        """Begin to record."""
        recorder = self

        def record(error: SpantuneError, *arguments: object) -> None:
            recorder._init(error, *arguments)
            recorder._write(error)

        SpantuneError.__init__ = record  # type: ignore[method-assign]

    def stop(self) -> None:
        """Stop recording."""
        SpantuneError.__init__ = self._init  # type: ignore[method-assign]
        self._file.close()

    def _write(self, error: SpantuneError) -> None:
        frame = sys._getframe(2)
        frames: list[tuple[str, int]] = []
        while frame is not None and len(frames) < self.FRAMES:
            if frame.f_code.co_filename.startswith(_SOURCE) and frame.f_code.co_name != "__init__":
                frames.append((Path(frame.f_code.co_filename).relative_to(_SOURCE).as_posix(), frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]
        place = tuple(frames[:2])
        self._messages[place] = self._messages.get(place, 0) + 1
        if frames and self._messages[place] <= self.MESSAGES:
            record = {"type": type(error).__name__, "message": str(error), "frames": frames}
            self._file.write(json.dumps(record, ensure_ascii=True) + "\n")
            self._file.flush()
