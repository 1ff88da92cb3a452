"""armor report: what lies in a folder, as one HTML page that fetches nothing, and as PNG plots."""

from armor.report.collect import collect, name_comparison
from armor.report.write import write_report

__all__ = ["collect", "name_comparison", "write_report"]
