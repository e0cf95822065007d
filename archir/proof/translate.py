"""Rules over a pattern as goals: both sides as terms, with the facts that the guards give.

Where the left side leaves open whether an operator has a parameter (a bias), each case is a
goal of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from archir.lang import tree as t
from archir.ops.record import REQUIRED, Attr, Derived, Kind, Law, Mode, Op, OpSet, SameAs
from archir.proof.symbols import Symbols, UnspokenError
from archir.proof.terms import (
    NONE,
    Application,
    Constant,
    Fact,
    Formula,
    Goal,
    Variable,
    apply,
    parts,
    replaced,
    variables,
)
from archir.proof.vocabulary import FOLDED, buffers, use
from archir.rewrite.rule import Pattern, PatternNode, PatternOperand, Rewriting, Rule

MAX_CASES = 64


@dataclass
class _Use:
    """A pattern node as it is used on one side."""

    node: PatternNode
    operands: tuple[Formula, ...]
    attrs: Mapping[str, Formula]
    params: Mapping[str, Formula]
    outputs: tuple[Formula, ...]
    rank: int | None


@dataclass
class _Side:
    uses: dict[str, _Use] = field(default_factory=dict)


def goals(rule: Rule, ops: OpSet, mode: Mode) -> list[Goal]:
    """The goals of a rule over a pattern in a mode: one for each value that it hands over.

    Raises:
        UnspokenError: the rule says what the prover's terms cannot.
    """
    body = rule.body
    assert isinstance(body, Rewriting)
    if mode == "train":
        for node in (*body.match.nodes, *body.replace.nodes):
            if Law.RANDOM_IN_TRAINING in ops[node.op].laws:
                stated = node.attrs.get("p")
                if not (isinstance(stated, t.Literal) and stated.value == 0):
                    raise UnspokenError(f"`{node.op}` is random in training")
    found: list[Goal] = []
    for case in _cases(rule, body.match, ops):
        found.extend(_Translation(rule, ops, case).goals(mode))
    return found


def _cases(rule: Rule, match: Pattern, ops: OpSet) -> Iterator[dict[tuple[str, str], bool]]:
    """Every choice of the flags that the left side and the guards do not state."""
    known = fixed(rule)
    free: dict[tuple[str, str], tuple[bool, ...]] = {}
    for node in match.nodes:
        for flag in dict.fromkeys(p.when for p in ops[node.op].params if p.when):
            stated = node.attrs.get(flag)
            if isinstance(stated, t.Literal):
                continue
            guard = known.get(stated.path if isinstance(stated, t.Name) else f"{node.name}.{flag}")
            value = guard.value if guard is not None else None
            free[node.name, flag] = (value,) if isinstance(value, bool) else (True, False)
    if 2 ** len(free) > MAX_CASES:
        raise UnspokenError("the left side leaves too much open")
    for choice in product(*free.values()):
        yield dict(zip(free, choice, strict=True))


def conjuncts(rule: Rule) -> Iterator[t.Expr]:
    """The guards of a rule, one by one."""
    for condition in rule.where:
        if isinstance(condition, t.Logic) and condition.op == "and":
            yield from condition.items
        else:
            yield condition


def fixed(rule: Rule) -> dict[str, t.Literal]:
    """The names and attributes that the guards give a value (``c.stride == 1``)."""
    found: dict[str, t.Literal] = {}
    for guard in conjuncts(rule):
        if isinstance(guard, t.Compare) and guard.op == "==":
            for one, two in ((guard.left, guard.right), (guard.right, guard.left)):
                if isinstance(one, t.Name) and isinstance(two, t.Literal):
                    found[one.path] = two
    return found


def ranks(rule: Rule) -> dict[str, int]:
    """The ranks that the guards state (``rank(x) == 4``)."""
    found: dict[str, int] = {}
    for guard in conjuncts(rule):
        if not (isinstance(guard, t.Compare) and guard.op == "=="):
            continue
        for one, two in ((guard.left, guard.right), (guard.right, guard.left)):
            if isinstance(one, t.Call) and one.callee.text == "rank" and one.arguments:
                subject = one.arguments[0].value
                value = two.value if isinstance(two, t.Literal) else None
                if isinstance(subject, t.Name) and isinstance(value, int):
                    found[subject.path] = value
    return found


class _Translation:
    """One case of a rule."""

    def __init__(self, rule: Rule, ops: OpSet, flags: Mapping[tuple[str, str], bool]) -> None:
        assert isinstance(rule.body, Rewriting)
        self.rule, self.body, self.ops, self.flags = rule, rule.body, ops, flags
        self.symbols = Symbols(ranks=ranks(rule))
        self.known = fixed(rule)
        self.ranks: dict[Formula, int] = {}
        self.left, self.right = _Side(), _Side()

    def goals(self, mode: Mode) -> Iterator[Goal]:
        self._parameters()
        for node in self.body.match.nodes:
            self._match(node)
        self._tensors()
        self._late_guards()
        if not self._assumed():
            return
        for name, expression in self.body.lets:
            self.symbols.names[name] = self.symbols.term(expression)
        for node in self.body.replace.nodes:
            self._replace(node)
        self._same_paddings()
        suffix = "".join(
            f", {name} without {flag}" for (name, flag), there in self.flags.items() if not there
        )
        facts = tuple(dict.fromkeys(self.symbols.facts))
        for name, left, right in self._pairs(mode):
            own = (_alike(left, right),) if name in self.body.match.bindings else ()
            yield Goal(f"{name}{suffix}", left, right, (*facts, *own))

    # --- what is known ----------------------------------------------------------------------

    def _parameters(self) -> None:
        for parameter in self.rule.parameters:
            if parameter.kind == "path":
                self._operand(PatternOperand(parameter.name), self.left)
                continue
            variable = Variable(parameter.name)
            self.symbols.names[parameter.name] = variable
            if parameter.kind == "odd":
                self.symbols.facts.append(Fact("odd", (variable,)))

    def _late_guards(self) -> None:
        """Equations between what both sides of a guard stand for; oddness."""
        for guard in conjuncts(self.rule):
            if not (isinstance(guard, t.Compare) and guard.op == "=="):
                continue
            try:
                if isinstance(guard.left, t.Chain) and _remainder_one(guard):
                    self.symbols.facts.append(Fact("odd", (self.symbols.term(guard.left.first),)))
                    continue
                sides = self.symbols.term(guard.left), self.symbols.term(guard.right)
            except UnspokenError:
                continue  # an assumption that is not used
            if sides[0] != sides[1] and not all(isinstance(s, Constant) for s in sides):
                self.symbols.facts.append(Fact("equal", sides))

    def _assumed(self) -> bool:
        """What the rule assumes of weights holds; whether the weights that it names are there.

        Where both sides are absent, or one is and the other is 0, there is nothing to assume.
        """
        for said in self.body.assumes:
            assert isinstance(said.left, t.Name)
            left = self._present(said.left)
            right = self._present(said.right)
            if left is None or right is None:
                if left in (None, Constant(0)) and right in (None, Constant(0)):
                    continue
                return False
            if not self.symbols.tensor(right):
                right = apply("fill", right, Variable(f"old shape {said.left.path}"))
            self.symbols.facts.append(Fact("equal", (left, right)))
        return True

    def _present(self, expression: t.Expr) -> Formula | None:
        """The term of a side of an assumption; None for a weight that is absent in this case."""
        if isinstance(expression, t.Name):
            owner, _, role = expression.path.rpartition(".")
            held = self.left.uses.get(owner)
            roles = {p.role for p in self.ops[held.node.op].params} if held else set()
            if role in roles and held is not None and role not in held.params:
                return None
        return self.symbols.term(expression)

    # --- the left side ------------------------------------------------------------------------

    def _match(self, node: PatternNode) -> None:
        op = self.ops[node.op]
        operands = tuple(self._operand(o, self.left) for o in node.operands)
        rank = self.ranks.get(operands[0]) if operands else None
        attrs: dict[str, Formula] = {}
        for attr in _ordered(op):
            stated = node.attrs.get(attr.name) or self.known.get(f"{node.name}.{attr.name}")
            attrs[attr.name] = self._matched(node, attr, stated, operands, rank, attrs)
        params: dict[str, Formula] = {}
        for p in op.params:
            there = self._there(node, p.when, attrs)
            if there and p.dtype is None:
                params[p.role] = Variable(f"{node.name}.{p.role}")
                self.symbols.weights.add(f"{node.name}.{p.role}")
        self._add(self.left, node, op, operands, attrs, params, rank)
        self.symbols.owned[node.name] = {**attrs, **params}
        self.symbols.stated[node.name] = attrs
        if "weight" in params and (op.name == "linear" or attrs.get("groups") == Constant(1)):
            self._columns(op, operands[0], params["weight"])

    def _columns(self, op: Op, operand: Formula, weight: Formula) -> None:
        """A weight has as many columns as what it reads has channels."""
        read = apply("size", operand, -1) if op.name == "linear" else apply("channels", operand)
        if op.name in ("linear", "conv"):
            self.symbols.facts.append(Fact("equal", (read, apply("size", weight, 1))))

    def _there(self, node: PatternNode, flag: str | None, attrs: Mapping[str, Formula]) -> bool:
        if flag is None:
            return True
        held = attrs.get(flag)
        if isinstance(held, Constant):
            return bool(held.value)
        return self.flags[node.name, flag]

    def _matched(
        self,
        node: PatternNode,
        attr: Attr,
        stated: t.Expr | None,
        operands: tuple[Formula, ...],
        rank: int | None,
        sofar: Mapping[str, Formula],
    ) -> Formula:
        free = Variable(f"{node.name}.{attr.name}")
        if (node.name, attr.name) in self.flags:
            return Constant(self.flags[node.name, attr.name])
        if stated is None:
            return free
        if isinstance(stated, t.Name) and stated.path not in self.symbols.names:
            if stated.path in self.known:
                value = self.symbols.term(self.known[stated.path])
                self.symbols.names[stated.path] = value
            else:
                self.symbols.names[stated.path] = free
                return free
        return self._attribute(attr, self.symbols.term(stated), operands, rank, sofar)

    def _attribute(
        self,
        attr: Attr,
        value: Formula,
        operands: tuple[Formula, ...],
        rank: int | None,
        sofar: Mapping[str, Formula],
    ) -> Formula:
        """A stated value, as the operator holds it: one entry for each spatial axis."""
        if attr.kind is Kind.PADDING and value == Constant("same"):
            return apply(
                "same", sofar["kernel"], sofar.get("dilation", self._spread(1, operands, rank))
            )
        if attr.kind in (Kind.SPATIAL, Kind.PADDING) and self._number(value):
            spread = self._spread(value, operands, rank)
            self.symbols.odd(spread)
            return spread
        return value

    def _number(self, value: Formula) -> bool:
        """Whether a value is one number; what was matched may hold one for each axis."""
        if isinstance(value, Variable):
            return any(p.name == value.name for p in self.rule.parameters)
        if isinstance(value, Application) and value.head in ("spatial", "tuple", "same"):
            return False
        return not any(
            isinstance(p, Variable) and all(p.name != q.name for q in self.rule.parameters)
            for p in parts(value)
        )

    def _spread(
        self, value: Formula | int, operands: tuple[Formula, ...], rank: int | None
    ) -> Application:
        count: Formula | int = (
            rank - 2 if rank is not None else apply("spatial_rank", *operands[:1])
        )
        return apply("spatial", value, count)

    def _operand(self, operand: PatternOperand, side: _Side) -> Formula:
        if operand.node is not None:
            outputs = side.uses[operand.node].outputs
            if operand.port >= len(outputs):
                raise UnspokenError(f"how many results `{operand.node}` has")
            return outputs[operand.port]
        assert operand.variable is not None
        term = Variable(f"tensor {operand.variable}")
        self.symbols.tensors.setdefault(operand.variable, term)
        if operand.variable in self.symbols.ranks:
            self.ranks[term] = self.symbols.ranks[operand.variable]
        return term

    def _tensors(self) -> None:
        for name, operand in self.body.match.bindings.items():
            self.symbols.tensors[name] = self._operand(operand, self.left)
        for name, held in self.left.uses.items():
            self.symbols.tensors.setdefault(name, held.outputs[0])
        for name, rank in self.symbols.ranks.items():
            if name in self.symbols.tensors:
                tensor = self.symbols.tensors[name]
                self.ranks[tensor] = rank
                if rank == 2:
                    self.symbols.facts.append(Fact("flat", (tensor,)))

    def _add(
        self,
        side: _Side,
        node: PatternNode,
        op: Op,
        operands: tuple[Formula, ...],
        attrs: Mapping[str, Formula],
        params: Mapping[str, Formula],
        rank: int | None,
    ) -> None:
        taken = operands
        if Law.COMMUTATIVE in op.laws and op.name in FOLDED:
            taken = tuple(sorted(_summands(FOLDED[op.name], operands), key=str))
        pattern = self.body.match if side is self.left else self.body.replace
        held = [*pattern.bindings.values(), *(o for n in pattern.nodes for o in n.operands)]
        results = 1 + max((o.port for o in held if o.node == node.name), default=0)
        outputs = use(op, taken, attrs, params, results=results)
        side.uses[node.name] = _Use(node, operands, attrs, params, outputs, rank)
        if rank is not None and _keeps_rank(op):
            for output in outputs:
                self.ranks[output] = rank
        out = attrs.get("out")
        if out is not None and op.name == "conv":
            self.symbols.facts.append(Fact("equal", (apply("channels", outputs[0]), out)))

    # --- the right side -----------------------------------------------------------------------

    def _replace(self, node: PatternNode) -> None:
        op = self.ops[node.op]
        operands = tuple(self._operand(o, self.right) for o in node.operands)
        rank = self.ranks.get(operands[0]) if operands else None
        own = self.left.uses.get(node.name)
        old = own if own is not None and own.node.op == node.op else None
        if own is None and node.unlabelled:
            old = self._twin(node, op, operands, rank)
        attrs: dict[str, Formula] = {}
        for attr in _ordered(op):
            stated = node.attrs.get(attr.name)
            if stated is not None:
                self.symbols.attributes = True
                value = self.symbols.term(stated)
                self.symbols.attributes = False
            elif old is not None:
                attrs[attr.name] = old.attrs[attr.name]
                continue
            else:
                value = self._default(attr, attrs)
            attrs[attr.name] = self._attribute(attr, value, operands, rank, attrs)
        kept = old or self._kept(node, operands, attrs)
        self.symbols.owned[node.name] = {**attrs, **(kept.params if kept else {})}
        self.symbols.stated[node.name] = attrs
        params = self._weights(node, op, attrs, kept)
        self._add(self.right, node, op, operands, attrs, params, rank)

    def _twin(
        self, node: PatternNode, op: Op, operands: tuple[Formula, ...], rank: int | None
    ) -> _Use | None:
        """A node of the left side that says the same as an unlabelled one: it stays as it is."""
        for name, held in self.left.uses.items():
            alike = held.node.op == node.op and held.operands == operands
            if not alike or self.body.replace.node(name) is not None:
                continue
            values = {
                attr: self._attribute(
                    _attr(op, attr), self.symbols.term(value), operands, rank, held.attrs
                )
                for attr, value in node.attrs.items()
            }
            if all(held.attrs[attr] == value for attr, value in values.items()):
                return held
        return None

    def _default(self, attr: Attr, sofar: Mapping[str, Formula]) -> Formula:
        value = attr.default
        if value is REQUIRED:
            raise UnspokenError(f"`{attr.name}` is not stated")
        if isinstance(value, SameAs):
            return sofar[value.attr]
        return NONE if isinstance(value, Derived) else Constant(value)

    def _kept(
        self, node: PatternNode, operands: tuple[Formula, ...], attrs: Mapping[str, Formula]
    ) -> _Use | None:
        """A node of the left side that says the same: it stays, with its parameters."""
        for held in self.left.uses.values():
            alike = held.node.op == node.op and held.operands == operands
            if alike and all(held.attrs[name] == attrs[name] for name in node.attrs):
                return held
        return None

    def _weights(
        self, node: PatternNode, op: Op, attrs: Mapping[str, Formula], kept: _Use | None
    ) -> dict[str, Formula]:
        stated = {
            target.rpartition(".")[2]: expression
            for target, expression in self.body.weights
            if target.rpartition(".")[0] == node.name
        }
        params: dict[str, Formula] = {}
        for p in op.params:
            flag = attrs.get(p.when) if p.when else Constant(value=True)
            if not isinstance(flag, Constant):
                raise UnspokenError(f"whether `{node.name}` has a `{p.role}`")
            if not flag.value or p.dtype is not None:
                continue
            if p.role in stated:
                params[p.role] = self._value(f"{node.name}.{p.role}", stated[p.role])
            elif kept is not None and p.role in kept.params:
                params[p.role] = kept.params[p.role]
            else:
                raise UnspokenError(f"`{node.name}.{p.role}` is given no value")
        return params

    def _value(self, target: str, expression: t.Expr) -> Formula:
        """What a parameter is given; a plain number fills it, whatever its shape is."""
        self.symbols.target = target
        term = self.symbols.term(expression)
        self.symbols.target = ""
        number = not self.symbols.tensor(term) and term != NONE
        return apply("fill", term, Variable(f"shape {target}")) if number else term

    def _same_paddings(self) -> None:
        """`same` padding of kernels that are numbers is a number."""
        kernels = [p for u in (self.left, self.right) for p in _spatials(u)]
        for kernel in kernels:
            for step in kernels:
                if kernel.args[1] != step.args[1]:
                    continue
                k, d = kernel.args[0], step.args[0]
                if not (isinstance(k, Constant) and isinstance(d, Constant)):
                    continue
                if isinstance(k.value, int) and isinstance(d.value, int) and k.value % 2:
                    padding = apply("spatial", d.value * (k.value - 1) // 2, kernel.args[1])
                    self.symbols.facts.append(Fact("equal", (apply("same", kernel, step), padding)))

    # --- the goals ----------------------------------------------------------------------------

    def _pairs(self, mode: Mode) -> Iterator[tuple[str, Formula, Formula]]:
        body = self.body
        for name, operand in body.match.bindings.items():
            target = body.replace.bindings.get(name)
            if target is not None:
                yield name, self._operand(operand, self.left), self._operand(target, self.right)
        # What has changed and is not handed over is read by nothing else: the matcher sees to it.
        if mode == "train":
            yield from self._buffers()

    def _buffers(self) -> Iterator[tuple[str, Formula, Formula]]:
        """New buffers are the map of the old ones; what starts anew has nothing to agree with."""
        after: dict[str, Formula] = {}
        for name, held in self.left.uses.items():
            op = self.ops[held.node.op]
            terms = buffers(op, held.operands, held.attrs, held.params)
            after.update({f"{name}.{role}": term for role, term in terms.items()})
        for name, made in self.right.uses.items():
            op = self.ops[made.node.op]
            for role, term in buffers(op, made.operands, made.attrs, made.params).items():
                held_before = made.params[role]
                if not variables(held_before) & after.keys():
                    continue
                if any(
                    isinstance(p, Application) and p.head == "place" for p in parts(held_before)
                ):
                    raise UnspokenError(f"the buffer `{name}.{role}` gets entries of its own")
                yield f"{name}.{role}", replaced(held_before, after), term


def _alike(left: Formula, right: Formula) -> Fact:
    """The planner refuses places where what is handed over would change its shape."""
    return Fact("equal", (apply("shape", left), apply("shape", right)))


def _spatials(side: _Side) -> Iterator[Application]:
    for held in side.uses.values():
        for value in held.attrs.values():
            if isinstance(value, Application) and value.head == "spatial":
                yield value


def _summands(head: str, operands: Sequence[Formula]) -> Iterator[Formula]:
    """The operands of nested sums (products): sides that add the same things are one term."""
    for operand in operands:
        if isinstance(operand, Application) and operand.head == head:
            yield from _summands(head, operand.args)
        else:
            yield operand


def _ordered(op: Op) -> list[Attr]:
    """The attributes, paddings last: `same` depends on the others."""
    return sorted(op.attrs, key=lambda a: a.kind is Kind.PADDING)


def _keeps_rank(op: Op) -> bool:
    if Law.ELEMENTWISE in op.laws or op.name in ("conv", "linear", "batch_norm", "softmax"):
        return True
    return op.name.endswith("_pool") and not op.name.startswith("global")


def _attr(op: Op, name: str) -> Attr:
    return next(a for a in op.attrs if a.name == name)


def _remainder_one(guard: t.Compare) -> bool:
    left, right = guard.left, guard.right
    return (
        isinstance(left, t.Chain)
        and len(left.rest) == 1
        and left.rest[0][0] == "%"
        and isinstance(left.rest[0][1], t.Literal)
        and left.rest[0][1].value == 2
        and isinstance(right, t.Literal)
        and right.value == 1
    )
