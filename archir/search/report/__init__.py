"""The report of a search: one HTML file that is read without a network or a server.

Importing this module needs jinja2 and matplotlib, and no torch.
"""

from __future__ import annotations

from archir.search.report.page import page

__all__ = ["page"]
