"""A report over runs: one HTML file that needs no other file. It reads the runs' folders only."""

from .page import write_report

__all__ = ["write_report"]
