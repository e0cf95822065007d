"""A network in training: its weights, the optimizer's state, and what else goes with them.

:class:`State` is a value beside :class:`archir.api.Network`: it is taken from live torch objects,
moves through rewrites, is saved as ``net.optim.safetensors`` beside the network, and becomes a
module and an optimizer again. Importing this module needs no torch.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from archir.api import Application, Network, Rewritten, rewrite
from archir.api import load as load_network
from archir.diag import UNSUPPORTED, ArchirError, error
from archir.ir.types import AttrValue
from archir.ops.arithmetic import Array, Floating
from archir.proof.certificate import weights_hash
from archir.rewrite.plan import Plan, apply_terms
from archir.saving import optimizer_path
from archir.train.moments import FIRST, SECOND, STEP, Fate, Group, OptimizerState, moved
from archir.weights.functions import evaluate
from archir.weights.store import load_metadata, load_weights, save_weights
from archir.weights.terms import Free, references

if TYPE_CHECKING:
    import torch

__all__ = ["Fate", "Group", "Moved", "OptimizerState", "State", "optimizer_path"]

FORMAT = 1
_KEY, _EMA = "optimizer", "ema"
_SCALARS = (bool, int, float, str)
_UNNAMED = ("params", "param_names")


@dataclass(frozen=True)
class Moved:
    """What a rewrite of a network in training did."""

    state: State
    rewritten: Rewritten
    fates: Mapping[str, Fate]
    """What became of the optimizer's state of each parameter of the child."""


@dataclass(frozen=True)
class State:
    """A network in training.

    ``ema`` are averaged weights by path, ``step`` counts the optimizer's steps, ``scaler`` and
    ``schedule`` are the states of a gradient scaler and a learning-rate schedule, which rewrites
    leave as they are.
    """

    network: Network
    optimizer: OptimizerState
    ema: Mapping[str, Array] | None = field(default=None, repr=False)
    step: int = 0
    scaler: Mapping[str, Any] | None = None
    schedule: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        optimizer: torch.optim.Optimizer,
        *,
        module: torch.nn.Module,
        ema: Mapping[str, Array] | None = None,
        step: int = 0,
        scaler: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
    ) -> Self:
        """The state of live torch objects, as arrays of their own.

        Args:
            network: The network that was lowered; if the module's weights are others, they are
                taken, as one more step of the certificate.
            optimizer: A ``torch.optim.SGD``, ``Adam`` or ``AdamW`` over the module's parameters.
            module: The lowered module, which may be compiled or wrapped.
            ema: Averaged weights by path.
            step: How many steps the optimizer took; 0 stands for many. SGD does not count them,
                and its momentum is the younger the fewer they are.
            scaler: The ``state_dict`` of a ``torch.amp.GradScaler``.
            schedule: That of a schedule.

        Raises:
            ArchirError: A650, an optimizer of another kind; A651, parameters that are not the
                module's; A611 or A612, a module of another network.
        """
        from archir.train.device import weights_of  # noqa: PLC0415 - needs torch

        weights = weights_of(module, network.graph)
        own = network.weights
        if own is None or any(not np.array_equal(own[p], a) for p, a in weights.items()):
            network = network.with_weights(weights, "given", {"note": "taken from a live module"})
        held = None if ema is None else {path: np.array(a) for path, a in ema.items()}
        found = _read_optimizer(optimizer, module)
        return cls(network, found, held, step, scaler, schedule)

    def rewrite(
        self, rule: str, at: str | None = None, *, seed: int = 0, **arguments: AttrValue
    ) -> State:
        """Apply a rule to the network, and its gradient map to the optimizer's state.

        The arguments are those of :meth:`archir.api.Network.rewrite`.

        Raises:
            ArchirError: the rule does not apply (A30x), a check failed (A40x), A654.
        """
        return self.apply([Application(rule, at, arguments)], seed=seed).state

    def apply(self, applications: Sequence[Application], **how: Any) -> Moved:
        """Apply rules, all or none; ``how`` is as for :func:`archir.api.rewrite`.

        The certificate's step says the sha256 of the optimizer's state before and after.

        Raises:
            ArchirError: as for :func:`archir.api.rewrite`; A654, the state is not finite.
        """
        for path, slots in self.optimizer.slots.items():
            if not all(np.isfinite(a).all() for a in slots.values()):
                raise error("A654", f"the optimizer's state of `{path}` is not finite")
        made: list[tuple[State, dict[str, Fate]]] = []

        def record(done: Rewritten) -> Mapping[str, Any]:
            state, fates = _through(self, done)
            made.append((state, fates))
            count = Counter(fate.what for fate in fates.values())
            digests = {"before": self.digest, "after": state.digest}
            return {"optimizer": {**digests, **{k: count[k] for k in ("kept", "mapped", "zero")}}}

        done = rewrite(self.network, applications, record=record, **how)
        (state, fates) = made[0]
        return Moved(replace(state, network=done.network), done, fates)

    @property
    def digest(self) -> str:
        """sha256 (hex) of all but the network."""
        found = hashlib.sha256(f"{json.dumps(self._facts(), sort_keys=True)}\n".encode())
        for name, array in sorted(self._tensors().items()):
            found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    def to_torch(
        self, device: torch.device | str = "cpu"
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """The lowered module on a device, and an optimizer over its parameters, ready to step.

        The optimizer has the class, the groups and the settings that it was taken with.

        Raises:
            ArchirError: A503 or A622, torch is not installed; A5xx, torch cannot run the network.
        """
        import torch  # noqa: PLC0415 - the module can be imported without

        from archir.train.device import module_of  # noqa: PLC0415 - needs torch

        assert self.network.weights is not None
        module = module_of(self.network.graph, dict(self.network.weights), torch.device(device))
        return module, _made_optimizer(self.optimizer, module)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the network's files and the optimizer's state beside them, all or nothing.

        Raises:
            ArchirError: A602, A603.
        """
        file = optimizer_path(Path(path))
        return self.network.save(path, force=force, beside={file: self._write})

    def _write(self, file: Path) -> None:
        assert self.network.weights is not None
        digest = weights_hash(self.network.graph, self.network.weights)
        facts = {**self._facts(), "format": FORMAT, "weights": digest}
        save_weights(file, self._tensors(), {_KEY: json.dumps(facts, sort_keys=True)})

    def _facts(self) -> dict[str, Any]:
        groups = [{"paths": g.paths, "options": dict(g.options)} for g in self.optimizer.groups]
        return {
            "kind": self.optimizer.kind,
            "groups": groups,
            "frozen": self.optimizer.frozen,
            "step": self.step,
            "scaler": self.scaler,
            "schedule": self.schedule,
            "ema": self.ema is not None,
        }

    def _tensors(self) -> dict[str, Array]:
        slots = self.optimizer.slots.items()
        found = {f"{slot}/{path}": a for path, held in slots for slot, a in held.items()}
        return found | {f"{_EMA}/{path}": a for path, a in (self.ema or {}).items()}

    @classmethod
    def load(cls, path: str | Path, network: Network | None = None) -> Self:
        """Read the optimizer's state beside a network's file.

        Args:
            path: The ``.arch`` file.
            network: The network; read from the file where it is not given.

        Raises:
            ArchirError: A652, there is none; A601 or A610, it cannot be read; A653, it is no
                optimizer's state; A651, it is that of other weights.
        """
        file = optimizer_path(Path(path))
        if not file.is_file():
            raise error(
                "A652",
                f"there is no optimizer's state beside {path}: {file.name} does not exist",
                hint="`archir train --with-optimizer` writes one",
            )
        network = network or load_network(path)
        facts = _facts_of(file)
        arrays = load_weights(file)
        try:
            found = cls(network, *_parsed(facts, arrays))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _damaged(file) from None
        _check_fits(file, facts, found)
        return found


# --- through rewrites ------------------------------------------------------------------------


def _through(state: State, done: Rewritten) -> tuple[State, dict[str, Fate]]:
    """The state after the uses of a rewrite, one after the other."""
    weights, optimizer, ema = state.network.weights, state.optimizer, state.ema
    if weights is None:
        raise error("A651", "a network without weights has no optimizer's state")
    fates: dict[str, Fate] = {}
    for number, use in enumerate(done.uses):
        measured = dict[Free, Array](use.measured.items())
        optimizer, found = moved(optimizer, use.plan, weights, measured, steps=state.step)
        for path, fate in found.items():
            if fate.what != "kept" or path not in fates:
                fates[path] = fate
        if ema is not None:
            ema = _averaged(use.plan, {**weights, **ema}, ema, measured)
        if number + 1 < len(done.uses):
            weights = apply_terms(use.plan.terms, use.plan.after, weights, use.measured)
    fates = {path: fates[path] for path in done.uses[-1].plan.after.parameters if path in fates}
    return replace(state, optimizer=optimizer, ema=ema), fates


def _averaged(
    plan: Plan,
    weights: Mapping[str, Array],
    ema: Mapping[str, Array],
    measured: Mapping[Free, Array],
) -> dict[str, Array]:
    """Averaged weights are weights: the same terms make those of the child."""
    out: dict[str, Array] = {}
    buffers = any(plan.before.parameters[p].buffer for p in ema if p in plan.before.parameters)
    for path, parameter in plan.after.parameters.items():
        term = plan.terms.get(path)
        read = list(references(term)) if term is not None else [path]
        if not (any(p in ema for p in read) or (not read and (buffers or not parameter.buffer))):
            continue
        if term is None:
            out[path] = ema[path]
            continue
        dtype = next((ema[p].dtype for p in read if p in ema), np.dtype(np.float32))
        value = evaluate(term, Floating(np.float64), weights, measured)
        kind = dtype if parameter.type.dtype.startswith(("f", "bf")) else np.dtype(np.int64)
        out[path] = np.asarray(value).astype(kind)
    return out


# --- live optimizers -------------------------------------------------------------------------


def _read_optimizer(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> OptimizerState:
    import torch  # noqa: PLC0415 - the module can be imported without

    kind = type(optimizer).__name__
    if kind not in FIRST or type(optimizer) is not getattr(torch.optim, kind, None):
        raise error(
            "A650",
            f"the state of a {type(optimizer).__module__}.{kind} cannot be moved",
            hint="torch.optim.SGD, Adam and AdamW are known",
            status=UNSUPPORTED,
        )
    names = {id(p): path for path, p in _inner(module).named_parameters()}
    known = (FIRST[kind], *SECOND[kind], STEP)
    groups: list[Group] = []
    slots: dict[str, dict[str, Array]] = {}
    for group in optimizer.param_groups:
        if not all(id(p) in names for p in group["params"]):
            raise error("A651", "the optimizer holds parameters that are not the module's")
        paths = tuple(names[id(p)] for p in group["params"])
        options = {k: _plain(k, v) for k, v in group.items() if k not in _UNNAMED}
        groups.append(Group(paths, options))
        for path, parameter in zip(paths, group["params"], strict=True):
            held = {k: v for k, v in optimizer.state.get(parameter, {}).items() if v is not None}
            if not all(name in known for name in held):
                other = next(name for name in held if name not in known)
                raise error("A650", f"`{other}` of `{path}` is not known", status=UNSUPPORTED)
            if held:
                slots[path] = {name: _array(value) for name, value in held.items()}
    frozen = [path for path, p in _inner(module).named_parameters() if not p.requires_grad]
    return OptimizerState(kind, tuple(groups), slots, tuple(frozen))  # type: ignore[arg-type]


def _inner(module: torch.nn.Module) -> torch.nn.Module:
    """The lowered module inside of what torch.compile or a parallel wrapper made of it."""
    import torch  # noqa: PLC0415 - the module can be imported without

    while not isinstance(module, torch.fx.GraphModule):
        inner = module._modules.get("_orig_mod") or module._modules.get("module")
        if inner is None:
            break
        module = inner
    return module


def _array(value: Any) -> Array:
    import torch  # noqa: PLC0415 - the module can be imported without

    if not isinstance(value, torch.Tensor):
        return np.asarray(value, np.float32)
    held = value.detach().cpu()
    return np.array((held.float() if held.dtype is torch.bfloat16 else held).numpy(), order="C")


def _plain(name: str, value: Any) -> Any:
    """A setting as a value that JSON knows; a rate that is a tensor becomes a number."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if isinstance(value, list | tuple):
        return tuple(_plain(name, v) for v in value)
    if value is None or isinstance(value, _SCALARS):
        return value
    raise error(
        "A650", f"the entry `{name}` of a parameter group cannot be kept", status=UNSUPPORTED
    )


def _made_optimizer(state: OptimizerState, module: torch.nn.Module) -> torch.optim.Optimizer:
    import torch  # noqa: PLC0415 - the module can be imported without

    own = dict(module.named_parameters())
    for path in state.frozen:
        own[path].requires_grad = False
    groups = []
    for group in state.groups:
        options = dict(group.options)
        if "paths" in options:
            options["paths"] = group.paths
        groups.append({"params": [own[path] for path in group.paths], **options})
    make = getattr(torch.optim, state.kind)
    takes = inspect.signature(make.__init__).parameters
    common = {k: v for k, v in groups[0].items() if k in takes and k != "params"}
    try:
        optimizer: torch.optim.Optimizer = make(groups, **common)
    except (ValueError, TypeError, RuntimeError) as reason:
        raise error("A653", f"torch refuses these settings of its {state.kind}: {reason}") from None
    fill(optimizer, [path for group in state.groups for path in group.paths], state)
    return optimizer


def fill(optimizer: torch.optim.Optimizer, paths: Sequence[str], state: OptimizerState) -> None:
    """Give an optimizer the slots of a state; its groups and their settings stay.

    Args:
        optimizer: One of the state's kind.
        paths: Those of its parameters, in its order.
        state: Where the slots come from; parameters that it does not have start at zero.
    """
    import torch  # noqa: PLC0415 - the module can be imported without

    packed = optimizer.state_dict()
    packed["state"] = {
        number: {k: torch.from_numpy(np.array(a)) for k, a in state.slots[path].items()}
        for number, path in enumerate(paths)
        if path in state.slots
    }
    optimizer.load_state_dict(packed)


# --- files -----------------------------------------------------------------------------------


def _damaged(file: Path) -> ArchirError:
    return error("A653", f"{file} is damaged, or no optimizer's state")


def _facts_of(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(load_metadata(file)[_KEY])
        version = facts["format"]
    except (KeyError, ValueError, TypeError, RecursionError):
        raise _damaged(file) from None
    if type(version) is not int or version > FORMAT:
        raise error(
            "A653",
            f"{file} has format version {version}, this archir reads up to {FORMAT}",
            hint="pip install --upgrade archir",
        )
    return dict(facts)


def _parsed(facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[Any, ...]:
    """The fields of a state, of what a file holds; anything malformed raises."""
    kind = facts["kind"]
    known = (FIRST[kind], *SECOND[kind], STEP)
    groups = tuple(Group(_texts(g["paths"]), _options(kind, g["options"])) for g in facts["groups"])
    slots: dict[str, dict[str, Array]] = {}
    ema: dict[str, Array] = {}
    for name, array in arrays.items():
        slot, _, path = name.partition("/")
        if slot == _EMA:
            ema[path] = array
        elif slot in known:
            slots.setdefault(path, {})[slot] = array
        else:
            raise ValueError(name)
    if type(facts["step"]) is not int or facts["step"] < 0 or type(facts["ema"]) is not bool:
        raise ValueError("step")
    loose = [facts["scaler"], facts["schedule"]]
    if not all(value is None or isinstance(value, dict) for value in loose):
        raise ValueError("scaler")
    optimizer = OptimizerState(kind, groups, slots, _texts(facts["frozen"]))
    return optimizer, ema if facts["ema"] else None, facts["step"], *loose


def _texts(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(text, str) for text in raw):
        raise TypeError("no list of paths")
    return tuple(raw)


def _options(kind: str, raw: Any) -> dict[str, Any]:
    def value(given: Any) -> Any:
        if isinstance(given, list):
            return tuple(value(each) for each in given)
        if given is not None and not isinstance(given, _SCALARS):
            raise TypeError("no setting")
        return given

    found = {str(name): value(given) for name, given in raw.items()}
    betas = found["betas"] if SECOND[kind] else (found["momentum"], found["dampening"])
    if len(betas) != 2 or not all(map(_is_number, (found["lr"], found["weight_decay"], *betas))):
        raise TypeError("no number")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_fits(file: Path, facts: Mapping[str, Any], state: State) -> None:
    """A state is that of the very weights that it was written with.

    Raises:
        ArchirError: A651.
    """
    network, optimizer = state.network, state.optimizer
    if network.weights is None:
        raise error("A651", f"{file} has no weights beside it")
    parameters = {p: held for p, held in network.graph.parameters.items() if not held.buffer}
    held = [path for group in optimizer.groups for path in group.paths] + list(optimizer.frozen)
    wrong = [path for path in (*held, *optimizer.slots) if path not in parameters]
    if wrong:
        raise error("A651", f"{file} speaks of `{wrong[0]}`, which the network does not have")
    grouped = [path for group in optimizer.groups for path in group.paths]
    if len(set(grouped)) != len(grouped) or set(optimizer.slots) - set(grouped):
        raise _damaged(file)
    for path, slots in optimizer.slots.items():
        for slot, array in slots.items():
            due = () if slot == STEP else parameters[path].type.shape
            if array.shape != due or array.dtype.kind != "f":
                raise error("A651", f"{file}: {slot} of `{path}` is {list(array.shape)}")
        needed = {FIRST[optimizer.kind], *SECOND[optimizer.kind][:1]}
        needed |= {STEP} if SECOND[optimizer.kind] else set()
        if not needed <= set(slots):
            raise _damaged(file)
    for path, array in (state.ema or {}).items():
        owner = network.graph.parameters.get(path)
        if owner is None or array.shape != owner.type.shape:
            raise error("A651", f"{file}: the average of `{path}` does not fit the network")
    if facts.get("weights") != weights_hash(network.graph, network.weights):
        raise error(
            "A651",
            f"{file} belongs to other weights than those beside it",
            hint="weights that were changed otherwise than by `archir` need a new optimizer",
        )
