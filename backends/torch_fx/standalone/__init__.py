"""Networks as Python files that need torch alone."""

from .deliver import Report as Report
from .deliver import write_source as write_source
