"""A report over runs: one HTML file that needs nothing beside it, from the runs' folders alone."""

from .page import write_report

__all__ = ["write_report"]
