"""Draw what a terminal showed as an SVG for the README; it loads no font and nothing else.

tmux capture-pane -e -p > capture.txt      # with its colours
python tools/terminal_svg.py capture.txt docs/images/terminal.svg
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

FONTS = "'DejaVu Sans Mono', Menlo, Consolas, ui-monospace, 'Noto Sans Mono CJK SC', monospace"


def main(source: Path, target: Path, title: str = "spantune") -> None:
    """Write the text of `source`, with its ANSI colours, as a picture of a terminal to `target`."""
    lines = source.read_text(encoding="utf-8").rstrip().splitlines()
    width = max(Text.from_ansi(line).cell_len for line in lines) + 1
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True, highlight=False)
    svg = console.export_svg(title=title, theme=MONOKAI, font_aspect_ratio=0.6)
    svg = svg.replace("<!-- Generated with Rich https://www.textualize.io -->", "")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]+;", f"font-family: {FONTS};", svg)
    target.write_text(re.sub(r"\n\s*\n+", "\n", svg), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
