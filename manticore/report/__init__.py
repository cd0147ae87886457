"""What a run shows: the one-page report, the model card and the tables for the terminal."""

from manticore.report.card import write_model_card
from manticore.report.html import write_report
from manticore.report.results import Results, parse_results, read_results
from manticore.report.terminal import render_comparison, render_summary

__all__ = [
    "Results",
    "parse_results",
    "read_results",
    "render_comparison",
    "render_summary",
    "write_model_card",
    "write_report",
]
