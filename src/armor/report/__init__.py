"""report.html: one file with the comparison's table and plots, and nothing fetched from outside."""

from armor.report.write import layer_records, write_report

__all__ = ["layer_records", "write_report"]
