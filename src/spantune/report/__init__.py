"""Reports as HTML pages, Markdown and JSON, made from scores and documents. No score is computed here."""

from __future__ import annotations

from spantune.report.comparison import write_comparison
from spantune.report.content import CalibrationView, Report
from spantune.report.documents import write_page
from spantune.report.extracted import ExtractionView, write_extractions
from spantune.report.live_server import LiveServer
from spantune.report.run import describe_run, report_run
from spantune.report.write import write_report

__all__ = [
    "CalibrationView",
    "ExtractionView",
    "LiveServer",
    "Report",
    "describe_run",
    "report_run",
    "write_comparison",
    "write_extractions",
    "write_page",
    "write_report",
]
