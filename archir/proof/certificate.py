"""Certificates: where a network came from, step by step, in a form that can be checked.

A certificate is a chain of steps, each with the state (text, graph, weights) before and after,
and a digest over the step and the digest before it. ``init``, ``rewrite`` and ``undo`` steps can be
replayed bit for bit; ``train``, ``calibrate`` and ``given`` steps are attested by hashes alone,
and what they made is kept in the lineage folder beside the network.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from archir.diag import error
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash, numbering
from archir.ops.arithmetic import Array

FORMAT = "archir-certificate"
VERSION = 1
MAX_DEPTH = 32
"""How deep the values of a certificate may nest."""
REPLAYED = ("init", "rewrite", "undo")
ATTESTED = ("given", "import", "load", "train", "calibrate")


def text_hash(text: str) -> str:
    """sha256 (hex) of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


_digests: dict[int, tuple[weakref.ref[Array], bytes]] = {}
"""Digests of tensors that nothing can change, as long as something holds them."""


def _tensor_digest(array: Array) -> bytes:
    """The digest of one tensor; kept for tensors that several states share."""
    known = _digests.get(id(array))
    if known is not None and known[0]() is array:
        return known[1]
    whole = np.ascontiguousarray(array)
    made = hashlib.sha256(f"{whole.dtype.str} {whole.shape}\n".encode())
    made.update(whole.reshape(-1).view(np.uint8).data)
    if not array.flags.writeable:
        key = id(array)
        _digests[key] = (weakref.ref(array, lambda _: _digests.pop(key, None)), made.digest())
    return made.digest()


def weights_hash(graph: Graph, weights: Mapping[str, Array]) -> str:
    """sha256 (hex) over the tensors in the graph's canonical parameter order."""
    digest = hashlib.sha256(b"archir weights 1\n")
    for path in numbering(graph).parameters:
        digest.update(_tensor_digest(weights[path]))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class State:
    """A network at one moment: hashes of its text, its graph and its weights."""

    text: str
    graph: str
    weights: str | None


def state_of(text: str, graph: Graph, weights: Mapping[str, Array] | None) -> State:
    """The state of a network."""
    own = None if weights is None else weights_hash(graph, weights)
    return State(text_hash(text), graph_hash(graph), own)


@dataclass(frozen=True)
class Step:
    """One step of a chain. ``facts`` is what its kind records, as JSON values."""

    kind: str
    before: State | None
    after: State
    facts: Mapping[str, Any]
    digest: str = ""

    def body(self) -> dict[str, Any]:
        """The step as JSON values, without its digest."""
        return {
            "kind": self.kind,
            "before": None if self.before is None else asdict(self.before),
            "after": asdict(self.after),
            **self.facts,
        }


@dataclass(frozen=True)
class Certificate:
    """A chain of steps, and the table from canonical numbers to parameter paths at its end."""

    steps: tuple[Step, ...] = ()
    parameters: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    """The arch's parameters that the text was loaded with."""

    def then(self, kind: str, after: State, graph: Graph, facts: Mapping[str, Any]) -> Certificate:
        """The chain with one more step."""
        before = self.steps[-1].after if self.steps else None
        step = Step(kind, before, after, facts)
        last = self.steps[-1].digest if self.steps else ""
        step = replace(step, digest=_digest(last, step))
        return replace(self, steps=(*self.steps, step), parameters=numbering(graph).parameters)

    def cut(self, number: int, graph: Graph) -> Certificate:
        """The chain as it was after its first steps, when the network had this graph."""
        return replace(self, steps=self.steps[:number], parameters=numbering(graph).parameters)

    def to_json(self) -> str:
        """The certificate as the text of a ``.cert.json`` file."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "params": dict(self.params),
            "parameters": list(self.parameters),
            "steps": [{**step.body(), "digest": step.digest} for step in self.steps],
        }
        return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _digest(last: str, step: Step) -> str:
    body = json.dumps(step.body(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{last}\n{body}".encode()).hexdigest()


def read_certificate(path: Path) -> Certificate:
    """Read a certificate file.

    Raises:
        ArchirError: A402, the file is missing, not JSON, of another version or malformed.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(
            "A402",
            f"there is no certificate {path.name}",
            hint="`archir rewrite` and `archir weights init` write one beside the network",
        ) from None
    except (ValueError, OSError, RecursionError) as reason:
        raise error("A402", f"{path.name} is not a certificate: {reason}") from None
    try:
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise error(
                "A402",
                f"{path.name} has format {document['format']!r} version {document['version']!r}; "
                f"this archir reads {FORMAT} version {VERSION}",
            )
        _only(document, ("format", "version", "params", "parameters", "steps"))
        _shallow(document)
        steps = tuple(_step(raw) for raw in document["steps"])
        params = {str(k): _value(v) for k, v in document["params"].items()}
        return Certificate(steps, _paths(document["parameters"]), params)
    except (KeyError, TypeError, ValueError, AttributeError) as reason:
        raise error("A402", f"{path.name} is malformed: {type(reason).__name__} {reason}") from None


def _only(raw: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """No digest covers what is not known, so it must not be there."""
    for key in raw:
        if key not in known:
            raise ValueError(f"{key!r} has no meaning there")


def _shallow(document: object) -> None:
    stack: list[tuple[object, int]] = [(document, 0)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ValueError("it nests too deeply")
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            stack.extend((v, depth + 1) for v in inner)


def _paths(raw: object) -> tuple[str, ...]:
    if isinstance(raw, list) and all(isinstance(p, str) for p in raw):
        return tuple(raw)
    raise ValueError("parameters is no list of paths")


def _value(raw: object) -> object:
    """The value of a parameter of an arch: a scalar, or a list of them."""
    if isinstance(raw, list):
        return [_value(v) for v in raw]
    if raw is None or isinstance(raw, str | int | float):
        return raw
    raise ValueError("a parameter of the arch is no scalar")


def _step(raw: Mapping[str, Any]) -> Step:
    facts = {k: v for k, v in raw.items() if k not in ("kind", "before", "after", "digest")}
    before = None if raw["before"] is None else _state(raw["before"])
    return Step(str(raw["kind"]), before, _state(raw["after"]), facts, _hash(raw["digest"]))


def _state(raw: Mapping[str, Any]) -> State:
    _only(raw, ("text", "graph", "weights"))
    weights = raw["weights"]
    own = None if weights is None else _hash(weights)
    return State(_hash(raw["text"]), _hash(raw["graph"]), own)


def _hash(raw: object) -> str:
    """A hash; it names files of the lineage, so that nothing else may stand there."""
    if isinstance(raw, str) and re.fullmatch("[0-9a-f]{64}", raw):
        return raw
    raise ValueError(f"{str(raw)[:80]!r} is no sha256")


def broken_link(certificate: Certificate) -> str | None:
    """What is wrong with the chain itself, if anything: a digest, a state that does not follow."""
    last, state = "", None
    for number, step in enumerate(certificate.steps, 1):
        if step.kind not in REPLAYED + ATTESTED:
            return f"step {number} is of the unknown kind {step.kind!r}"
        if _digest(last, step) != step.digest:
            return f"step {number} ({step.kind}) does not match its digest"
        if step.before != state:
            return f"step {number} ({step.kind}) does not start where the one before it ended"
        last, state = step.digest, step.after
    return None if certificate.steps else "the certificate has no steps"
