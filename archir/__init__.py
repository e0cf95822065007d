"""archir: a compiler for neural architectures.

In Python::

    import archir

    net = archir.load("net.arch")
    net.rewrite("deepen", at="stem").save("deeper.arch")
    module = net.to_torch()
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archir.api import Application as Application
    from archir.api import Network as Network
    from archir.api import load as load
    from archir.api import rewrite as rewrite
    from archir.diag import ArchirError as ArchirError
    from archir.importing import import_network as import_network

__all__ = [
    "Application",
    "ArchirError",
    "Network",
    "__version__",
    "import_network",
    "load",
    "rewrite",
]

try:
    __version__ = version("archir")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first asked for: ``import archir`` stays quick."""
    if name == "ArchirError":
        from archir.diag import ArchirError

        return ArchirError
    if name == "import_network":
        from archir.importing import import_network

        return import_network
    if name in __all__:
        from archir import api

        return getattr(api, name)
    raise AttributeError(f"module 'archir' has no attribute {name!r}")
