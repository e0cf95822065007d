"""A loaded program: its text, its graph, and where in the text each node comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from archir.diag import Source, Span
from archir.ir.graph import Graph
from archir.ir.types import AttrValue, TensorType
from archir.lang import tree as t

Site = t.Stage | t.Call | t.Chain | t.Unary | t.Literal | t.TensorStatement | t.InputStatement
"""The piece of syntax that makes a node, or a block's instance."""


@dataclass(slots=True, eq=False, repr=False)
class Group:
    """The nodes and instances that one evaluation of a statement makes."""

    target: str | None
    """The (first) name that a binding binds; None for an output."""
    opens: bool
    """Whether the binding opens a scope of its own (a binding of the arch)."""
    members: list[Draft | Scope] = field(default_factory=list)
    indexed: bool = False
    """Whether its unlabelled blocks are numbered even if there is only one."""


@dataclass(slots=True, eq=False, repr=False)
class Scope:
    """A region of paths: the arch, one of its bindings, or an instance of a block.

    ``path`` is set when the names are given, at the end of elaboration.
    """

    parent: Scope | None
    block: t.Block | t.Arch | None
    """The block of an instance; the arch for the outermost scope; None for a binding."""
    site: Site | None = None
    """The call that made the instance."""
    statement: t.Statement | None = None
    group: Group | None = None
    label: str | None = None
    index: int | None = None
    """Which of a repeat's instances it is."""
    env: dict[str, object] = field(default_factory=dict)
    """The names of its body, with their values."""
    groups: list[Group] = field(default_factory=list)
    path: str = ""

    @property
    def instance(self) -> Scope:
        """The block instance (or arch) whose body this scope belongs to."""
        scope = self
        while scope.block is None and scope.parent is not None:
            scope = scope.parent
        return scope


@dataclass(slots=True, eq=False, repr=False)
class Draft:
    """A node before it has a name."""

    op: str
    attrs: Mapping[str, AttrValue]
    inputs: tuple[Tensor, ...]
    types: tuple[TensorType, ...]
    params: Mapping[str, TensorType]
    buffers: frozenset[str]
    scope: Scope
    group: Group
    site: Site
    statement: t.Statement
    span: Span
    label: str | None = None
    index: int | None = None
    ties: tuple[tuple[str, t.Name], ...] = ()
    renames: tuple[t.Rename, ...] = ()
    path: str = ""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor value: an output of a draft."""

    draft: Draft
    port: int = 0

    @property
    def type(self) -> TensorType:
        """Its type."""
        return self.draft.types[self.port]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node comes from.

    ``path`` is that of the block instance (or binding) whose names it shares; ``default`` tells
    whether its own name was given by the language rather than by a label or a binding.
    """

    span: Span
    site: Site = field(repr=False)
    statement: t.Statement = field(repr=False)
    scope: Scope = field(repr=False)
    label: str | None
    index: int | None
    default: bool

    @property
    def path(self) -> str:
        """The path of the scope."""
        return self.scope.path


@dataclass(frozen=True)
class Program:
    """A file, its graph, and the origin of every node by its path."""

    source: Source
    document: t.Document = field(repr=False)
    graph: Graph
    origins: Mapping[str, Origin] = field(repr=False)
    params: Mapping[str, AttrValue]
