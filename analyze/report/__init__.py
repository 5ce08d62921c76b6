"""The report: one self-contained page of everything a lake knows about its runs."""

from analyze.report.build import Report, build_report

__all__ = ["Report", "build_report"]
