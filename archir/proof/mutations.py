"""Mutation operators: how a rule's text may be made wrong, one place at a time.

Each operator looks at a rule's syntax and says which pieces of its text it would replace by
what. Operators are chosen so that what they make is rarely a right rule again: they leave
alone what a rule draws at random (`initial()`), what stands behind weights of zero, and guards
that only say which sizes are asked for. They never look at a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

from lark import Token, Tree

from archir.diag import Span
from archir.lang import tree as t
from archir.lang.convert import kind_of
from archir.ops.record import REQUIRED, Kind, Law, Op
from archir.proof.edits import ACTIVATIONS, Edit, Mutation, node_of
from archir.proof.matched import Asked
from archir.proof.zeros import is_zero
from archir.rewrite.rule import Pattern, PatternNode, Rewriting
from archir.weights.functions import FUNCTIONS

ANOTHER = {"relu": "tanh", "tanh": "sigmoid"}
"""What an activation is exchanged for: none that the first one makes equal; else `relu`."""
OPPOSITE = {"/": "*", "*": "/", "+": "-", "-": "+"}
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
MOVES = ("transpose", "reshape", "pad", "take", "place", "slice", "concat")
"""Functions whose first argument can stand alone."""
WINDOWS = ("stride", "padding", "dilation")
"""Attributes that a layer's function depends on, whatever its weights are."""
ENDS = ("neg", "tanh", "roll(1, 1)", "sigmoid", "neg |> tanh", "tanh |> neg")
"""What changes any tensor, but not its shape."""
CUTS = ("unsqueeze(1)", "upsample(2)")
"""What changes the shape of any tensor; both together change it too."""
NUMBERS = (Kind.INT, Kind.FLOAT, Kind.AXIS)
"""Kinds of attributes that are wrong when they are one off."""
FREE = "initial"


class Mutator(Asked):
    """Goes through a rule's text and finds what can be made wrong.

    Raises:
        ArchirError: the text is not one rule.
    """

    def all(self) -> Iterator[Mutation]:
        """Every first-order mutation, operator by operator.

        Of a rule that keeps the shape alone most changes keep it too: only its claims and its
        results are made wrong.
        """
        yield from self.contract()
        yield from self.guards()
        if self.rule.contract.function:
            yield from self.parameters()
            for value in self.values():
                yield from self.value(value)
            yield from self.targets()
            yield from self.acts()
        if isinstance(self.rule.body, Rewriting):
            if self.rule.contract.function:
                yield from self.right_side()
                yield from self.left_side()
            yield from self.results()

    # --- what a rule promises -----------------------------------------------------------------

    def contract(self) -> Iterator[Mutation]:
        """Promise more, or assume less."""
        held = self.rule.contract
        for clause in self.clauses.get("preserves", []):
            span = self.reader.span(clause)
            if held.function == ("eval",) and not self.random():
                yield self.put("a promise for training", span, self.text(span) + ", train")
            elif not held.function:
                for modes in ("eval", "train", "eval, train"):
                    text = f"preserves function in {modes}"
                    yield self.put("the function for the shape", span, text)
                for claim in ("macs", "params"):
                    if not any(str(c.children[0]) == claim for c in self.clauses.get("claim", [])):
                        edit = Edit(span.end, span.end, f" {claim} decreases")
                        yield Mutation("a claim added", (edit,))
        for clause in self.clauses.get("claim", []):
            name, bound = (str(c) for c in clause.children)
            if bound == "kept" and not held.function:
                yield self.put("a claim sharpened", self.reader.span(clause), f"{name} decreases")
        yield from self.assumed()

    def random(self) -> bool:
        """Whether the rule speaks of what is random in training, where it then promises nothing."""
        body = self.rule.body
        if not isinstance(body, Rewriting):
            return False
        used = {n.op for n in (*body.match.nodes, *body.replace.nodes)}
        return any(Law.RANDOM_IN_TRAINING in self.ops[name].laws for name in used)

    def parameters(self) -> Iterator[Mutation]:
        """An even number where the rule wants an odd one, or the other way round.

        Not of what the left side states: that says which layers are asked for.
        """
        for clause in self.clauses.get("parameter", []):
            kind = self.reader.ident(clause.children[1])
            other = {"odd": "even", "even": "odd"}.get(kind.text)
            if other is None or self.matched(self.reader.ident(clause.children[0]).text):
                continue
            edits = [Edit(kind.span.start, kind.span.end, other)]
            if isinstance(clause.children[2], Tree):
                default = self.reader.expression(clause.children[2])
                if isinstance(default, t.Literal) and isinstance(default.value, int):
                    more = str(default.value + 1)
                    edits.append(Edit(default.span.start, default.span.end, more))
            yield Mutation(f"{kind.text} turned into {other}", tuple(edits))

    def matched(self, name: str) -> bool:
        """Whether the left side states a parameter of the rule as an attribute."""
        body = self.rule.body
        stated = (
            [e for n in body.match.nodes for e in n.attrs.values()]
            if isinstance(body, Rewriting)
            else []
        )
        return any(isinstance(e, t.Name) and e.path == name for e in stated)

    def guards(self) -> Iterator[Mutation]:
        """An equation of numbers, or of an attribute of windows, left out or turned round.

        Of a rule that keeps the shape alone: what says that something is cheaper. Other guards
        say where a rule fits or is of use: without them it is refused elsewhere, or does nothing.
        """
        for clause in self.clauses.get("where", []):
            guards = [self.reader.expression(e) for e in clause.children]
            for number, guard in enumerate(guards):
                if not isinstance(guard, t.Compare):
                    continue
                other = {"<": ">=", ">": "<="}.get(guard.op, "!=")
                equal = guard.op == "==" and self.counts(guard)
                if equal if self.rule.contract.function else self.of_costs(guard):
                    sign = self.between(guard.left, guard.right)
                    yield self.put("a guard turned round", sign, f" {other} ")
                    yield self.without_guard(clause, guards, number)

    def of_costs(self, guard: t.Compare) -> bool:
        """Whether a guard compares what two things cost: products, of which one is smaller."""
        products = [e for e in t.walk(guard) if isinstance(e, t.Chain) and e.rest[0][0] == "*"]
        return guard.op in ("<", ">") and bool(products) and bool(self.clauses.get("claim"))

    def counts(self, guard: t.Compare) -> bool:
        """Whether a guard asks for something that a rule's function is likely to depend on."""
        parts = list(t.walk(guard))
        if any(
            isinstance(e, t.Call) or (isinstance(e, t.Chain) and e.rest[0][0] == "%") for e in parts
        ):
            return False
        names = {e.path for e in parts if isinstance(e, t.Name)}
        of_windows = {n for n in names if self.attribute(n) in WINDOWS}
        given = {p.name for p in self.rule.parameters}
        return bool(names) and names <= of_windows | given

    def attribute(self, name: str) -> str:
        """The attribute that a name of the left side stands for."""
        body = self.rule.body
        if "." in name or not isinstance(body, Rewriting):
            return name.rpartition(".")[2]
        for node in body.match.nodes:
            for attr, value in node.attrs.items():
                if isinstance(value, t.Name) and value.path == name:
                    return attr
        return ""

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

    def values(self) -> Iterator[t.Let | t.Bind | t.Expr]:
        """What says what weights become, but what is drawn at random."""
        for clause in (*self.clauses.get("let", []), *self.weight_binds()):
            statement = self.reader.statement(clause)
            if isinstance(statement, t.Let | t.Bind) and self.matters(statement):
                yield statement
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

    def value(self, said: t.Let | t.Bind | t.Expr) -> Iterator[Mutation]:
        """What can be wrong within an expression.

        A statistic that has a name may be any vector: another in its place is as good. So are
        other sizes in the maps of a class. A bias may be absent, and then its shape is not wrong.
        """
        value = said.value if isinstance(said, t.Let | t.Bind) else said
        if isinstance(value, t.Call) and value.callee.text in ("mean", "variance"):
            return
        over_class = not isinstance(self.rule.body, Rewriting)
        bias = isinstance(said, t.Bind) and said.targets[0].text.endswith(".bias")
        for part in t.walk(value):
            if isinstance(part, t.Chain) and not (over_class and isinstance(said, t.Let)):
                yield from self.chain(part)
            elif isinstance(part, t.Call):
                yield from self.call(part, moved=not bias)

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
            if sign == "/" and self.cleared(chain):
                continue
            yield self.put(name, Span(self.source, before.span.end, part.span.end), "")
            yield self.put("another sign", self.between(before, part), f" {OPPOSITE[sign]} ")
        if len(chain.rest) == 1 and chain.rest[0][0] in "-/":
            yield self.swap("operands exchanged", parts[0].span, parts[1].span)

    def cleared(self, chain: t.Chain) -> bool:
        """Whether a step before has put zeros where a division would count."""
        before = [
            self.reader.expression(c.children[1])
            for c in self.clauses.get("act", [])
            if str(c.children[0]) == "consume"
        ]
        return any(_calls(e, "place") and e.span.end < chain.span.start for e in before)

    def call(self, call: t.Call, *, moved: bool) -> Iterator[Mutation]:
        """Another function, another axis, other constants; a move left out."""
        name = call.callee.text
        given = [a.value for a in call.arguments]
        if name in EXCHANGED:
            yield self.put("another function", call.callee.span, EXCHANGED[name])
        if name == "identity" and given:
            sizes = ", ".join(self.text(e.span) for e in (given[0], *given))
            yield self.put("zeros for the identity", call.span, f"zeros({sizes})")
            yield self.put("ones for the identity", call.span, f"ones({sizes})")
        if name == "sqrt":
            yield self.put("a root dropped", call.span, f"({self.text(given[0].span)})")
        elif name in MOVES and len(given) > 1 and moved:
            yield self.put("a move left out", call.span, f"({self.text(given[0].span)})")
        if name == "concat" and len(given) > 1:
            yield self.swap("operands exchanged", given[0].span, given[1].span)
        yield from self.constants(name, given, moved=moved)

    def constants(self, name: str, given: list[t.Expr], *, moved: bool) -> Iterator[Mutation]:
        """Axes swapped, and other numbers one off."""
        function = FUNCTIONS.get(name)
        roles = function.signature.partition("(")[2].rstrip(")").split(", ") if function else []
        for number, value in enumerate(given):
            if not isinstance(value, t.Literal) or type(value.value) is not int:
                continue
            axis = number < len(roles) and roles[number] == "axis"
            if name == "scale" or (moved and not axis):
                yield self.put("a number one off", value.span, str(value.value + 1))
            elif moved and name not in ("tile", "extend"):
                yield self.put("another axis", value.span, "1" if value.value == 0 else "0")

    def targets(self) -> Iterator[Mutation]:
        """A weight forgotten, scaled or moved; the values of two weights exchanged."""
        held: dict[str, list[t.Bind]] = {}
        for clause in self.weight_binds():
            bind = self.reader.statement(clause)
            if not isinstance(bind, t.Bind) or not self.matters(bind):
                continue
            span = bind.value.span
            text = self.text(span)
            if is_zero(bind.value):
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
        step: list[tuple[str, Span]] = []
        for clause in self.clauses.get("act", []):
            name, value = str(clause.children[0]), self.reader.expression(clause.children[1])
            if any(name == held for held, _ in step):
                yield from self.exchanged(step)
                step = []
            if _calls(value, FREE):
                continue
            step.append((name, value.span))
            text = f"({self.text(value.span)})"
            yield self.put(f"{name}: doubled", value.span, f"{text} * 2")
            yield self.put(f"{name}: cleared", value.span, f"{text} * 0")
            yield self.put(f"{name}: moved", value.span, f"{text} + 1")
        yield from self.exchanged(step)

    def exchanged(self, step: list[tuple[str, Span]]) -> Iterator[Mutation]:
        """Two acts of one step exchanged."""
        for (one, first), (two, second) in combinations(step, 2):
            if self.text(first) != self.text(second):
                yield self.swap(f"{one} and {two} exchanged", first, second)

    # --- patterns -----------------------------------------------------------------------------

    def right_side(self) -> Iterator[Mutation]:
        """Other operators, attributes, signs and orders on the right."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        for statement in self.statements("replace"):
            for part in t.walk(statement.value):
                if isinstance(part, t.Chain) and self.seen(part, body.replace):
                    yield from self.pattern_chain(part)
                elif isinstance(part, t.Pipeline):
                    yield from self.stages(part)
                elif isinstance(part, t.Call) and self.seen(part, body.replace):
                    yield from self.operator(part, body.replace)

    def results(self) -> Iterator[Mutation]:
        """One more operator behind what is handed over."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        for statement in self.statements("replace"):
            if statement.targets[0].text not in body.match.bindings:
                continue
            if self.rule.contract.function:
                yield from self.handed_over(statement)
                for number, op in enumerate(ENDS):
                    edits = self.behind(statement, op)
                    yield Mutation("an operator at the end", edits, spare=number > 0)
                continue
            yield from self.no_function(statement)
            for number, op in enumerate(CUTS):
                edits = self.behind(statement, op)
                yield Mutation("another shape at the end", edits, spare=number > 0)
            if self.clauses.get("claim"):
                for number, size in enumerate((9, 11, 13, 15)):
                    yield self.dearer(statement, size, spare=number > 1)

    def handed_over(self, statement: t.Bind) -> Iterator[Mutation]:
        """Another tensor of the left side where one is handed on as it is."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        if isinstance(statement.value, t.Name):
            for name in body.match.variables:
                if name != statement.value.path:
                    yield self.put("another tensor handed over", statement.value.span, name)

    def no_function(self, statement: t.Bind) -> Iterator[Mutation]:
        """The function promised, and something else handed over."""
        for clause in self.clauses.get("preserves", []):
            span = self.reader.span(clause)
            promise = Edit(span.start, span.end, "preserves function in eval")
            for op in ENDS:
                edits = (promise, *self.behind(statement, op))
                yield Mutation("the function for another value", edits, spare=True)

    def behind(self, statement: t.Bind, op: str) -> tuple[Edit, ...]:
        """An operator put behind the value of a statement."""
        value, target = statement.value, statement.targets[0].text
        at, end = value.span.start, value.span.end
        if isinstance(value, t.Call):  # it has the statement's name, under which weights know it
            return (Edit(at, at, f"{target}: "), Edit(end, end, f" |> {op}"))
        if isinstance(value, t.Pipeline | t.Name | t.Stage):
            return (Edit(end, end, f" |> {op}"),)
        return (Edit(at, at, "("), Edit(end, end, f") |> {op}"))

    def dearer(self, statement: t.Bind, size: int, *, spare: bool) -> Mutation:
        """A large layer at the end, so that the rule makes nothing cheaper."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        target, name = statement.targets[0].text, f"more{size}"
        names, layers = [name], f"{name}: conv(channels({target}), {size})"
        if any(n.op == "linear" for n in body.match.nodes):
            names.append(f"{name}_too")
            last = f"size({target}, -1)"
            layers = f"{name}: linear({size} * {last}) |> {name}_too: linear({last})"
        edits = self.behind(statement, layers)
        given = "".join(f" {n}.weight = initial() {n}.bias = initial() " for n in names)
        held = self.clauses.get("weights")
        end = self.reader.span((held or self.clauses["replace"])[0]).end
        added = Edit(end - 1, end - 1, given) if held else Edit(end, end, f" weights {{{given}}}")
        return Mutation("a dearer right side", (*edits, added), spare)

    def seen(self, call: t.Call | t.Chain, side: Pattern) -> bool:
        """Whether this is an operator that the result depends on."""
        node = node_of(side, call)
        return node is not None and node.name not in self.hidden

    def needed(self, call: t.Call, side: Pattern) -> bool:
        """Whether an operator may not be left out: not one that does again what is done."""
        op = self.ops.get(call.callee.text)
        if op is None or not (Law.ELEMENTWISE in op.laws or op.name.endswith(("norm", "softmax"))):
            return False  # without it the shape would be another
        again = sum(n.op == op.name for n in side.nodes) > 1
        return self.seen(call, side) and not (Law.IDEMPOTENT in op.laws and again)

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
        node = node_of(side, call)
        assert node is not None
        operands = [a for a in call.arguments if self.is_operand(a, call, node)]
        if name in ("sub", "div", "concat", "matmul") and len(operands) > 1:
            yield self.swap("operands exchanged", operands[0].span, operands[1].span)
        yield from self.attributes(call, op, operands, node)

    def is_operand(self, argument: t.Argument, call: t.Call, node: PatternNode) -> bool:
        """Whether an argument of a call is a tensor."""
        positional = [a for a in call.arguments if a.keyword is None]
        stated = len(node.attrs) - sum(a.keyword is not None for a in call.arguments)
        return argument in positional[: len(positional) - stated]

    def attributes(
        self, call: t.Call, op: Op, operands: list[t.Argument], node: PatternNode
    ) -> Iterator[Mutation]:
        """Attributes that are stated, one by one.

        Not those of windows: with another stride or padding a layer fits nowhere, or where a
        picture has a single row.
        """
        for number, argument in enumerate(call.arguments):
            name = next((n for n, e in node.attrs.items() if e == argument.value), "")
            attr = op.attr(name)
            if argument in operands or attr is None or attr.kind not in NUMBERS:
                continue
            if name == "stride":
                continue
            text = self.text(argument.value.span)
            yield self.put("an attribute one off", argument.value.span, f"{text} + 1")
            own = attr.default is not REQUIRED and attr.kind is Kind.FLOAT
            if argument.keyword is not None and number > 0 and own:
                start = call.arguments[number - 1].span.end
                whole = Span(self.source, start, argument.span.end)
                yield self.put("an attribute not stated", whole, "")


def _calls(value: t.Expr, name: str) -> bool:
    return any(isinstance(e, t.Call) and e.callee.text == name for e in t.walk(value))
