"""The backends of archir."""
