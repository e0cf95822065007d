"""The grammars of archir, as data: read them with ``importlib.resources``."""
