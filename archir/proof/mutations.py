"""Mutation operators: how a rule's text may be made wrong, one place at a time.

Each operator looks at a rule's syntax and says which pieces of its text it would replace by
what. Operators are chosen so that what they make is rarely a right rule again: they leave
alone what a rule draws at random (`initial()`), what stands behind weights of zero, and guards
that only say which sizes are asked for. They never look at a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from lark import Token, Tree

from archir.diag import Source, Span
from archir.lang import tree as t
from archir.lang.convert import Reader, kind_of
from archir.ops.record import Kind, Law, Op, OpSet
from archir.rewrite.expressions import text_of
from archir.rewrite.rule import Pattern, PatternNode, Rewriting, Rule
from archir.rewrite.rulefile import parse_rules, parser
from archir.weights.functions import FUNCTIONS


@dataclass(frozen=True, order=True, slots=True)
class Edit:
    """A piece of a rule's text, and what takes its place."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """What an operator would do to a rule."""

    operator: str
    edits: tuple[Edit, ...]


ACTIVATIONS = ("relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "softplus")
ANOTHER = {"relu": "tanh", "tanh": "sigmoid"}
"""What an activation is exchanged for: none that the first one makes equal; else `relu`."""
OPPOSITE = {"/": "*", "*": "/", "+": "-", "-": "+"}
REVERSED = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
MIRRORED = {"<": ">", ">": "<", "<=": ">", ">=": "<"}
EXCHANGED = {
    "zeros": "ones",
    "ones": "zeros",
    "mean": "variance",
    "variance": "mean",
    "take": "place",
    "place": "take",
    "replicate": "embed",
    "embed": "replicate",
}
"""Functions that take the same arguments and mean something else."""
MOVES = ("transpose", "reshape", "pad", "take", "place", "slice", "concat", "sqrt")
"""Functions whose first argument can stand alone."""
SCALABLE = (
    "conv",
    "conv_transpose",
    "linear",
    "batch_norm",
    "layer_norm",
    "rms_norm",
    "group_norm",
)
"""Operators whose result does not depend on their operand where their weight is zero."""
FREE = "initial"


class Mutator:
    """Goes through a rule's text and finds what can be made wrong.

    Raises:
        ArchirError: the text is not one rule.
    """

    def __init__(self, text: str, ops: OpSet, name: str = "mutant.rule") -> None:
        self.source, self.ops = Source(name, text), ops
        (self.rule,) = parse_rules(self.source, ops)
        self.reader = Reader(self.source)
        (tree,) = (c for c in parser().parse(text).children if isinstance(c, Tree))
        self.tree: Tree[Token] = tree
        self.clauses: dict[str, list[Tree[Token]]] = {}
        for child in _subtrees(tree):
            self.clauses.setdefault(kind_of(child), []).append(child)
        self.hidden = hidden(self.rule)

    def all(self) -> Iterator[Mutation]:
        """Every first-order mutation, operator by operator."""
        yield from self.contract()
        yield from self.parameters()
        yield from self.guards()
        for value in self.values():
            yield from self.value(value)
        yield from self.targets()
        yield from self.acts()
        if isinstance(self.rule.body, Rewriting):
            yield from self.right_side()
            yield from self.left_side()

    # --- helpers ------------------------------------------------------------------------------

    def text(self, span: Span) -> str:
        """What stands at a span."""
        return self.source.text[span.start : span.end]

    def put(self, operator: str, span: Span, text: str) -> Mutation:
        """Another text in the place of a span."""
        return Mutation(operator, (Edit(span.start, span.end, text),))

    def swap(self, operator: str, one: Span, two: Span) -> Mutation:
        """Two spans exchanged."""
        edits = (
            Edit(one.start, one.end, self.text(two)),
            Edit(two.start, two.end, self.text(one)),
        )
        return Mutation(operator, edits)

    def between(self, before: t.Expr, after: t.Expr) -> Span:
        """The text between two expressions, with the space around it."""
        return Span(self.source, before.span.end, after.span.start)

    # --- what a rule promises -----------------------------------------------------------------

    def contract(self) -> Iterator[Mutation]:
        """Promise more, or assume less."""
        held = self.rule.contract
        for clause in self.clauses.get("preserves", []):
            span = self.reader.span(clause)
            if held.function == ("eval",):
                yield self.put("a promise for training", span, self.text(span) + ", train")
            elif held.shape and not held.function:
                kept = "preserves function in"
                yield self.put("the function for the shape", span, f"{kept} eval")
                yield self.put("the function in training for the shape", span, f"{kept} train")
        if held.shape and not held.function:
            for claim in ("macs", "params"):
                if claim not in held.decreases:
                    end = self.reader.span(self.clauses["preserves"][0]).end
                    edit = Edit(end, end, f" {claim} decreases")
                    yield Mutation("a claim added", (edit,))
        for clause in self.clauses.get("assumes", []):
            yield self.put("nothing assumed", self.reader.span(clause), "")

    def parameters(self) -> Iterator[Mutation]:
        """An even number where the rule wants an odd one, or the other way round."""
        for clause in self.clauses.get("parameter", []):
            kind = self.reader.ident(clause.children[1])
            other = {"odd": "even", "even": "odd"}.get(kind.text)
            if other is None:
                continue
            edits = [Edit(kind.span.start, kind.span.end, other)]
            if isinstance(clause.children[2], Tree):
                default = self.reader.expression(clause.children[2])
                if isinstance(default, t.Literal) and isinstance(default.value, int):
                    more = str(default.value + 1)
                    edits.append(Edit(default.span.start, default.span.end, more))
            yield Mutation(f"{kind.text} turned into {other}", tuple(edits))

    def guards(self) -> Iterator[Mutation]:
        """A guard left out or turned round; one that only asks for a size is turned round."""
        over_class = not isinstance(self.rule.body, Rewriting)
        for clause in self.clauses.get("where", []):
            guards = [self.reader.expression(e) for e in clause.children]
            for number, guard in enumerate(guards):
                if not isinstance(guard, t.Compare):
                    continue
                sign = self.between(guard.left, guard.right)
                if _calls(guard, "rank") and isinstance(guard.right, t.Literal):
                    other = 3 if guard.right.value != 3 else 2
                    yield self.put("another rank", guard.right.span, str(other))
                elif over_class:
                    sizes = not isinstance(guard.right, t.Literal)
                    if guard.op in MIRRORED and sizes:
                        turned = f" {MIRRORED[guard.op]} "
                        yield self.put("a guard turned round", sign, turned)
                else:
                    yield self.put("a guard turned round", sign, f" {REVERSED[guard.op]} ")
                    yield self.without_guard(clause, guards, number)

    def without_guard(self, clause: Tree[Token], guards: list[t.Expr], number: int) -> Mutation:
        """One guard of a list left out, with its comma."""
        if len(guards) == 1:
            return self.put("a guard missing", self.reader.span(clause), "")
        if number == 0:
            span = Span(self.source, guards[0].span.start, guards[1].span.start)
        else:
            span = Span(self.source, guards[number - 1].span.end, guards[number].span.end)
        return self.put("a guard missing", span, "")

    # --- weights ------------------------------------------------------------------------------

    def values(self) -> Iterator[t.Expr]:
        """The expressions that say what weights become, but those that are drawn at random."""
        for clause in (*self.clauses.get("let", []), *self.weight_binds()):
            statement = self.reader.statement(clause)
            if isinstance(statement, t.Let | t.Bind) and self.matters(statement):
                yield statement.value
        for clause in self.clauses.get("act", []):
            value = self.reader.expression(clause.children[1])
            # Not every class is carried: what does not fit there would be right elsewhere.
            if not _calls(value, FREE) and str(clause.children[0]) != "carry":
                yield value

    def weight_binds(self) -> list[Tree[Token]]:
        """The statements of the `weights` part."""
        return [
            child
            for clause in self.clauses.get("weights", [])
            for child in clause.children
            if isinstance(child, Tree) and kind_of(child) == "bind"
        ]

    def matters(self, statement: t.Let | t.Bind) -> bool:
        """Whether a rule's function depends on what is written there."""
        if not self.rule.contract.function or _calls(statement.value, FREE):
            return False
        if isinstance(statement, t.Let):
            return True
        owner, _, role = statement.targets[0].text.rpartition(".")
        return owner not in self.hidden and (owner, role) not in self.hidden

    def value(self, value: t.Expr) -> Iterator[Mutation]:
        """What can be wrong within an expression.

        A statistic that has a name may be any vector: another in its place is as good.
        """
        if isinstance(value, t.Call) and value.callee.text in ("mean", "variance"):
            return
        for part in t.walk(value):
            if isinstance(part, t.Chain):
                yield from self.chain(part)
            elif isinstance(part, t.Call):
                yield from self.call(part)

    def chain(self, chain: t.Chain) -> Iterator[Mutation]:
        """A division, factor or summand left out; another sign; operands exchanged."""
        parts = [chain.first, *(part for _, part in chain.rest)]
        for number, (sign, part) in enumerate(chain.rest):
            before = parts[number]
            if sign not in OPPOSITE:
                continue
            names = {"/": "a division dropped", "*": "a factor dropped"}
            name = names.get(sign, "a summand dropped")
            if any(isinstance(e, t.Name) and e.path.endswith(".eps") for e in t.walk(part)):
                name = "eps dropped"
            yield self.put(name, Span(self.source, before.span.end, part.span.end), "")
            yield self.put("another sign", self.between(before, part), f" {OPPOSITE[sign]} ")
        if len(chain.rest) == 1 and chain.rest[0][0] in "-/":
            yield self.swap("operands exchanged", parts[0].span, parts[1].span)

    def call(self, call: t.Call) -> Iterator[Mutation]:
        """Another function, another axis, other constants; a move left out."""
        name = call.callee.text
        given = [a.value for a in call.arguments]
        if name in EXCHANGED:
            yield self.put("another function", call.callee.span, EXCHANGED[name])
        if name == "identity" and given:
            sizes = ", ".join(self.text(e.span) for e in (given[0], *given))
            yield self.put("zeros for the identity", call.span, f"zeros({sizes})")
            yield self.put("ones for the identity", call.span, f"ones({sizes})")
        if name == "sqrt" or (name in MOVES and len(given) > 1):
            operator = "a root dropped" if name == "sqrt" else "a move left out"
            yield self.put(operator, call.span, f"({self.text(given[0].span)})")
        if name == "concat" and len(given) > 1:
            yield self.swap("operands exchanged", given[0].span, given[1].span)
        yield from self.constants(name, given)

    def constants(self, name: str, given: list[t.Expr]) -> Iterator[Mutation]:
        """Axes swapped, and other numbers one off."""
        function = FUNCTIONS.get(name)
        roles = function.signature.partition("(")[2].rstrip(")").split(", ") if function else []
        for number, value in enumerate(given):
            if not isinstance(value, t.Literal) or isinstance(value.value, bool):
                continue
            role = roles[number] if number < len(roles) else ""
            if role == "axis" and isinstance(value.value, int):
                yield self.put("another axis", value.span, "1" if value.value == 0 else "0")
            elif isinstance(value.value, int):
                yield self.put("a number one off", value.span, str(value.value + 1))

    def targets(self) -> Iterator[Mutation]:
        """A weight forgotten, scaled or moved; the values of two weights exchanged."""
        held: dict[str, list[t.Bind]] = {}
        for clause in self.weight_binds():
            bind = self.reader.statement(clause)
            if not isinstance(bind, t.Bind) or not self.matters(bind):
                continue
            span = bind.value.span
            text = self.text(span)
            if _is_zero(bind.value):
                yield self.put("a one for the zero", span, "1")
                yield self.put("a half for the zero", span, "0.5")
            else:
                yield self.put("a weight forgotten", span, "0")
                yield self.put("a weight doubled", span, f"2 * ({text})")
                yield self.put("a weight moved", span, f"({text}) + 1")
                if not text.startswith("ones("):
                    yield self.put("a one for the weight", span, "1")
            held.setdefault(bind.targets[0].text.rpartition(".")[0], []).append(bind)
        for binds in held.values():
            vectors = [b for b in binds if self.vector(b)]
            for one, two in pairwise(vectors):
                if self.text(one.value.span) != self.text(two.value.span):
                    yield self.swap("two weights exchanged", one.value.span, two.value.span)

    def vector(self, bind: t.Bind) -> bool:
        """Whether a weight has one entry a channel (others do not fit in its place)."""
        owner, _, role = bind.targets[0].text.rpartition(".")
        assert isinstance(self.rule.body, Rewriting)
        node = self.rule.body.replace.node(owner)
        return node is not None and not (
            role == "weight" and node.op in ("conv", "conv_transpose", "linear", "embedding")
        )

    def acts(self) -> Iterator[Mutation]:
        """What the members of a class do: scaled, moved, cleared, exchanged."""
        found: list[tuple[str, t.Expr]] = [
            (str(c.children[0]), self.reader.expression(c.children[1]))
            for c in self.clauses.get("act", [])
        ]
        sure = [(name, e) for name, e in found if not _calls(e, FREE)]
        for name, value in sure:
            text = f"({self.text(value.span)})"
            yield self.put(f"{name}: doubled", value.span, f"{text} * 2")
            yield self.put(f"{name}: cleared", value.span, f"{text} * 0")
            yield self.put(f"{name}: moved", value.span, f"{text} + 1")
        for one, two in pairwise(sure):
            if self.text(one[1].span) != self.text(two[1].span):
                yield self.swap(f"{one[0]} and {two[0]} exchanged", one[1].span, two[1].span)
        if len(sure) == 3 and self.text(sure[0][1].span) != self.text(sure[2][1].span):
            yield self.swap("produce and consume exchanged", sure[0][1].span, sure[2][1].span)

    # --- patterns -----------------------------------------------------------------------------

    def statements(self, side: str) -> Iterator[t.Bind]:
        """The statements of `match` or `replace`."""
        for clause in self.clauses.get(side, []):
            for child in clause.children:
                if isinstance(child, Tree) and kind_of(child) != "where":
                    statement = self.reader.statement(child)
                    if isinstance(statement, t.Bind):
                        yield statement

    def right_side(self) -> Iterator[Mutation]:
        """Other operators, attributes, signs and orders on the right."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        for statement in self.statements("replace"):
            for part in t.walk(statement.value):
                if isinstance(part, t.Chain):
                    yield from self.pattern_chain(part)
                elif isinstance(part, t.Pipeline):
                    yield from self.stages(part)
                elif isinstance(part, t.Call) and self.seen(part, body.replace):
                    yield from self.operator(part, body.replace)
        last = [b for b in self.statements("replace") if b.targets[0].text in body.match.bindings]
        for statement in last[-1:]:
            value = statement.value
            text = self.text(value.span)
            piped = text if isinstance(value, t.Pipeline | t.Call | t.Name) else f"({text})"
            yield self.put("an activation at the end", value.span, f"{piped} |> tanh")

    def seen(self, call: t.Call, side: Pattern) -> bool:
        """Whether a call is an operator that the result depends on."""
        node = _node(side, call)
        return node is not None and node.name not in self.hidden

    def needed(self, call: t.Call, side: Pattern) -> bool:
        """Whether an operator may not be left out: not one that does again what is done."""
        op = self.ops.get(call.callee.text)
        again = sum(n.op == call.callee.text for n in side.nodes) > 1
        twice = op is not None and Law.IDEMPOTENT in op.laws and again
        return self.seen(call, side) and not twice

    def pattern_chain(self, chain: t.Chain) -> Iterator[Mutation]:
        """Sums and differences of tensors."""
        for number, (sign, part) in enumerate(chain.rest):
            before = [chain.first, *(p for _, p in chain.rest)][number]
            other = {"+": "*", "*": "+", "-": "+", "/": "*"}.get(sign)
            if other and len(chain.rest) == 1:
                yield self.put("another sign", self.between(before, part), f" {other} ")
            if isinstance(part, t.Name):
                span = Span(self.source, before.span.end, part.span.end)
                yield self.put("an operand dropped", span, "")
        if len(chain.rest) == 1 and chain.rest[0][0] in "-/":
            yield self.swap("operands exchanged", chain.first.span, chain.rest[0][1].span)

    def stages(self, pipeline: t.Pipeline) -> Iterator[Mutation]:
        """A stage without a label left out."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        before: t.Expr = pipeline.head
        for stage in pipeline.stages:
            plain = stage.label is None and isinstance(stage.body, t.Call)
            if plain and isinstance(stage.body, t.Call) and self.needed(stage.body, body.replace):
                span = Span(self.source, before.span.end, stage.span.end)
                yield self.put("an operator left out", span, "")
            before = stage

    def operator(self, call: t.Call, side: Pattern) -> Iterator[Mutation]:
        """Another activation; operands exchanged; attributes changed, left out or added."""
        name = call.callee.text
        op = self.ops[name]
        if name in ACTIVATIONS:
            yield self.put("another activation", call.callee.span, ANOTHER.get(name, "relu"))
        node = _node(side, call)
        assert node is not None
        operands = [a for a in call.arguments if self.is_operand(a, call, node)]
        if name in ("sub", "div", "concat", "matmul") and len(operands) > 1:
            yield self.swap("operands exchanged", operands[0].span, operands[1].span)
        yield from self.attributes(call, op, operands)
        for extra in self.added(node, op):
            yield self.more(call, extra)

    def is_operand(self, argument: t.Argument, call: t.Call, node: PatternNode) -> bool:
        """Whether an argument of a call is a tensor."""
        positional = [a for a in call.arguments if a.keyword is None]
        stated = len(node.attrs) - sum(a.keyword is not None for a in call.arguments)
        return argument in positional[: len(positional) - stated]

    def attributes(self, call: t.Call, op: Op, operands: list[t.Argument]) -> Iterator[Mutation]:
        """Attributes that are stated, one by one."""
        for number, argument in enumerate(call.arguments):
            if argument in operands:
                continue
            value = argument.value
            if isinstance(value, t.Literal) and isinstance(value.value, bool):
                continue  # whether there is a bias: the weights would not fit
            if isinstance(value, t.Literal) and isinstance(value.value, int):
                other = "0" if value.value == 1 and op.name in ("concat",) else value.value + 1
                yield self.put("an attribute one off", value.span, str(other))
            elif not isinstance(value, t.Literal) and argument.keyword is not None:
                span = self.text(value.span)
                yield self.put("an attribute one off", value.span, f"{span} + 1")
            if argument.keyword is not None and number > 0:
                start = call.arguments[number - 1].span.end
                span_ = Span(self.source, start, argument.span.end)
                yield self.put(f"{argument.keyword.text} not stated", span_, "")

    def added(self, node: PatternNode, op: Op) -> Iterator[str]:
        """Attributes that make a layer another one."""
        known = {a.name: a for a in op.attrs}
        if "kernel" not in known or op.name == "conv_transpose":
            return
        if "stride" not in node.attrs:
            yield "stride = 2"
        if "padding" not in node.attrs and known["padding"].kind is Kind.PADDING:
            kernel = node.attrs.get("kernel")
            yield "padding = 1" if kernel is None else f"padding = {text_of(kernel)}"

    def more(self, call: t.Call, extra: str) -> Mutation:
        """One more argument."""
        if call.parens is None:
            return self.put(_added(extra), call.callee.span, f"{call.callee.text}({extra})")
        inner = f", {extra})" if call.arguments else f"{extra})"
        return Mutation(_added(extra), (Edit(call.parens.end - 1, call.parens.end, inner),))

    def left_side(self) -> Iterator[Mutation]:
        """Other activations on the left, and attributes that need not be what they are."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        for statement in self.statements("match"):
            for part in t.walk(statement.value):
                if not isinstance(part, t.Call) or _node(body.match, part) is None:
                    continue
                name = part.callee.text
                if name in ACTIVATIONS and self.rule.contract.function:
                    other = {"relu": "gelu", "gelu": "silu"}.get(name, "gelu")
                    yield self.put("another activation matched", part.callee.span, other)


def hidden(rule: Rule) -> set[str | tuple[str, str]]:
    """Nodes of the right side, and weights, on which nothing depends: zeros stand behind them."""
    body = rule.body
    if not isinstance(body, Rewriting):
        return set()
    given = {target: value for target, value in body.weights if _is_zero(value)}
    found = _Hiding(body, given)
    used: set[str] = set()
    queue = [o.node for o in body.replace.bindings.values() if o.node is not None]
    read = {o.node for n in body.replace.nodes for o in n.operands}
    queue = [name for name in queue if name not in read or name in body.match.bindings]
    while queue:
        name = queue.pop()
        node = body.replace.node(name)
        if node is None or name in used:
            continue
        used.add(name)
        if not found.blind(node):
            queue += [o.node for o in node.operands if o.node is not None]
    out: set[str | tuple[str, str]] = {n.name for n in body.replace.nodes if n.name not in used}
    for name in used:
        node = body.replace.node(name)
        if node is not None and found.blind(node) and node.op.endswith("norm"):
            out |= {(name, "running_mean"), (name, "running_var")}
    return out


@dataclass
class _Hiding:
    body: Rewriting
    zeros: dict[str, t.Expr]
    cleared: dict[str, bool] = field(default_factory=dict)

    def blind(self, node: PatternNode) -> bool:
        """Whether a node's result does not depend on its operands."""
        if node.op in SCALABLE:
            return f"{node.name}.weight" in self.zeros
        if node.op == "mul":
            return any(self.zero(o.node) for o in node.operands if o.node is not None)
        return False

    def zero(self, name: str) -> bool:
        """Whether a node's result is zero."""
        node = self.body.replace.node(name)
        return node is not None and node.op == "parameter" and f"{name}.value" in self.zeros


def _subtrees(tree: Tree[Token]) -> Iterator[Tree[Token]]:
    """A tree and all in it, in the order of the text."""
    yield tree
    for child in tree.children:
        if isinstance(child, Tree):
            yield from _subtrees(child)


def _is_zero(value: t.Expr) -> bool:
    if isinstance(value, t.Literal):
        return value.value in (0, 0.0) and not isinstance(value.value, bool)
    return isinstance(value, t.Call) and value.callee.text == "zeros"


def _calls(value: t.Expr, name: str) -> bool:
    return any(isinstance(e, t.Call) and e.callee.text == name for e in t.walk(value))


def _node(side: Pattern, call: t.Call) -> PatternNode | None:
    return next((n for n in side.nodes if n.span == call.span), None)


def _added(extra: str) -> str:
    return f"{extra.partition(' ')[0]} added"
