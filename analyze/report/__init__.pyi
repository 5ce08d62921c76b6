from .build import Report as Report
from .build import build_report as build_report
