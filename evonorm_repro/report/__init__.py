"""A report over runs: one HTML file, which needs no other, made from the runs' folders alone."""

from .page import write_report

__all__ = ["write_report"]
