"""Backends as the core sees them: found through entry points, never imported by name.

A backend is a module (or any object) that an installed distribution names under the entry
point group ``archir.backends``. It has two tables over the operators and runs networks;
whatever else it offers (``lower``, ``weights_of``, ``build``, ``export``) it documents itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Literal, Protocol, cast

from archir.diag import error
from archir.ir.graph import Graph, Value
from archir.ops.arithmetic import Array
from archir.ops.record import OpSet

GROUP = "archir.backends"
LOWERINGS = "archir.lowerings"
"""The entry points of tables that lower a package's own operators; the name is the backend's."""
FORMATS = "archir.formats"
"""The entry points of formats that networks are drawn in; each is a :class:`Draw`."""
IMPORTERS = "archir.importers"
"""The entry points of what networks are imported from; each is an :class:`Importer`."""


class Forward(Protocol):
    """Runs a network on arrays."""

    def __call__(
        self,
        graph: Graph,
        weights: Mapping[str, Array],
        feeds: Mapping[str, Array],
        *,
        train: bool = False,
        values: Sequence[Value] | None = None,
    ) -> list[Array]:
        """Run ``graph``; nothing passed in is changed.

        Args:
            graph: The network.
            weights: An array for each of its parameters.
            feeds: An array for each input, by name.
            train: Whether to run in training mode (batch statistics, active dropout).
            values: What to return, by default the network's outputs.

        Returns:
            One array for each of ``values``.

        Raises:
            ArchirError: A5xx, the backend cannot run this network.
        """


class Backend(Protocol):
    """What every backend has."""

    @property
    def LOWER(self) -> Mapping[str, Callable[..., Any]]:  # noqa: N802 - a table, named as one
        """For each operator it supports, the function that lowers a use of it."""

    @property
    def UNSUPPORTED(self) -> Mapping[str, str]:  # noqa: N802
        """For each operator it does not support, the reason, in the user's terms."""

    @property
    def forward(self) -> Forward:
        """Runs a network."""


class Backends(Mapping[str, Backend]):
    """The installed backends by name; each is imported when it is first asked for."""

    def __init__(self, points: Mapping[str, EntryPoint]) -> None:
        self._points = points
        self._loaded: dict[str, Backend] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def __getitem__(self, name: str) -> Backend:
        """Import a backend.

        Raises:
            ArchirError: A503, there is no such backend or what it needs is not installed.
        """
        if name not in self._loaded:
            if name not in self._points:
                known = ", ".join(sorted(self._points)) or "none"
                raise error("A503", f"there is no backend `{name}` (installed: {known})")
            self._loaded[name] = _load(self._points[name])
        return self._loaded[name]


def backends(points: Sequence[EntryPoint] | None = None) -> Backends:
    """The installed backends.

    Raises:
        ArchirError: A504, two distributions offer a backend of one name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP) if points is None else points:
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise error(
                "A504",
                f"two packages offer a backend `{point.name}`: {_owner(other)} ({other.value}) "
                f"and {_owner(point)} ({point.value})",
                hint="uninstall one of them",
            )
    return Backends(found)


def extended(
    backend: str, own: Mapping[str, Callable[..., Any]], points: Sequence[EntryPoint] | None = None
) -> Mapping[str, Callable[..., Any]]:
    """A backend's table with the lowerings that packages bring for their own operators.

    A package names its table under the entry point group ``archir.lowerings``, by the name of
    the backend: ``torch = "package.torch:LOWER"``.

    Raises:
        ArchirError: A503, a table cannot be loaded; A504, two tables lower one operator.
    """
    found = dict(own)
    owners: dict[str, str] = {}
    for point in entry_points(group=LOWERINGS) if points is None else points:
        if point.name != backend:
            continue
        try:
            table = dict(point.load())
        except (ImportError, AttributeError, TypeError, ValueError) as reason:
            message = f"the lowerings of {_owner(point)} for `{backend}` cannot be loaded: {reason}"
            raise error("A503", message, hint=f"install {_owner(point)} again") from reason
        for op, lowering in table.items():
            if op in found:
                other = owners.get(op, "archir")
                message = f"{other} and {_owner(point)} both lower `{op}` for `{backend}`"
                raise error("A504", message, hint="uninstall one of them")
            found[op], owners[op] = lowering, _owner(point)
    return MappingProxyType(found)


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _load(point: EntryPoint) -> Backend:
    try:
        return cast("Backend", point.load())
    except (ImportError, AttributeError) as reason:
        missing = getattr(reason, "name", None) or ""
        if missing.partition(".")[0] == "archir" or isinstance(reason, AttributeError):
            hint = f"install {_owner(point)} again"
        elif _owner(point) == "archir":
            hint = f"pip install 'archir[{point.name}]'"
        else:
            hint = f"pip install {missing.partition('.')[0] or _owner(point)}"
        raise error(
            "A503", f"the backend `{point.name}` cannot be loaded: {reason}", hint=hint
        ) from reason


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a user may say about an import, whatever it is from."""

    size: tuple[int, ...] | None = None
    """The shape of one example, without the batch, where the source does not know it."""
    aux: Literal["refuse", "keep", "drop"] = "refuse"
    """What becomes of heads that have outputs in training alone."""
    seed: int = 0
    """For the initial weights of an architecture that comes without."""
    report: Callable[[str], None] = lambda _: None
    """Called with a line about each step of the work."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A network that came from somewhere else."""

    graph: Graph
    weights: Mapping[str, Array]
    facts: Mapping[str, Any]
    """What the certificate says of its source: JSON values."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """What parts of the network are instances of: names for blocks of the text, by path."""


class Importer(Protocol):
    """Imports a network from one kind of source."""

    def __call__(self, source: str, options: ImportOptions) -> Imported:
        """Import a network.

        Args:
            source: What follows ``NAME:``, or the path of a file.
            options: What the user said.

        Raises:
            ArchirError: A52x, the network cannot be imported; A601, there is no such file.
        """


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn network: the text of the file, and how much is on it."""

    text: str
    boxes: int
    edges: int


class Draw(Protocol):
    """Draws a network in one format."""

    def __call__(
        self,
        graph: Graph,
        ops: OpSet,
        *,
        depth: int | None = None,
        fold: bool = True,
        kinds: Mapping[str, str] | None = None,
        at: str = "",
    ) -> Drawing:
        """Draw a network.

        Args:
            graph: The network.
            ops: Its operators.
            depth: How many levels of blocks are opened; all of them by default.
            fold: Whether a chain of alike blocks is drawn once.
            kinds: The names of blocks, by the paths of their instances.
            at: The path of the only block that is drawn, with what enters and leaves it.

        Raises:
            ArchirError: A605, there is no block ``at``; A641, the picture would be too large to
                read.
        """


def formats() -> list[str]:
    """The formats that networks can be drawn in."""
    return sorted({point.name for point in entry_points(group=FORMATS)})


def draw(name: str) -> Draw:
    """What draws networks in a format.

    Raises:
        ArchirError: A503, there is no such format or what it needs is not installed.
    """
    points = list(entry_points(group=FORMATS, name=name))
    if not points:
        known = ", ".join(formats()) or "none"
        raise error("A503", f"there is no format `{name}` (installed: {known})")
    try:
        return cast("Draw", points[0].load())
    except ImportError as reason:
        ours = _owner(points[0]) == "archir"
        hint = "pip install 'archir[draw]'" if ours else f"install {_owner(points[0])} again"
        raise error(
            "A503", f"networks cannot be drawn as {name} here: {reason}", hint=hint
        ) from reason
