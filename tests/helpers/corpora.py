"""The fixtures of the corpus formats, and what they hold."""

from __future__ import annotations

from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures"

# What the first four sentences of every fixture hold.
CLINIC = [
    [("右肩", "bod"), ("右肩疼痛", "sym")],
    [],
    [("血钾", "ite"), ("螺内酯", "dru")],
    [("皮肤科", "dep"), ("带状疱疹", "dis")],
]
