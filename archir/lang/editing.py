"""A change of the graph as a change of the text.

Every changed node is traced to the piece of text it comes from and the block instance it
stands in. Instances that change alike share a block; a block of which only some instances
change is copied under a fresh name, and the calls of those instances are switched.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph, Node, Value
from archir.ir.same import equal
from archir.lang import tree as t
from archir.lang import words
from archir.lang.difference import CannotEdit, Insertion, compare
from archir.lang.elaboration import load
from archir.lang.flat import fresh
from archir.lang.format import format_text
from archir.lang.measured import measured, measures
from archir.lang.outline import block_names
from archir.lang.printer import print_graph
from archir.lang.program import Origin, Program, Scope, Tensor
from archir.lang.restating import changes, restated
from archir.lang.sites import Arguments, Edit, apply, call_of, extend, parents
from archir.ops.infer import OpError, bind_attrs
from archir.ops.record import OpSet

Form = tuple[str, tuple[tuple[str, str], ...]]
"""How an instance is called: the block's name, and arguments that change."""


def edit(program: Program, after: Graph, ops: OpSet) -> str:
    """The text of ``after``; see :func:`revise`."""
    return revise(program, after, ops).source.text


def revise(program: Program, after: Graph, ops: OpSet) -> Program:
    """The program of ``after``: the text of ``program``, changed as little as possible.

    Comments, blocks and the paths of untouched nodes stay. The result is loaded and compared
    with ``after``; what has no small edit is printed anew.

    Raises:
        ArchirError: A910, the graph holds what the language cannot say.
    """
    if equal(program.graph, after):
        return program
    source = program.source
    for way in (_Editor.run, _Editor.restate, partial(_Editor.restate, labels=True)):
        try:
            candidates = _layouts(way(_Editor(program, after, ops)), source)
        except CannotEdit:
            continue
        for candidate in candidates:
            try:
                again = load(Source(source.name, candidate), ops, program.params)
            except ArchirError:
                break
            if equal(again.graph, after):
                return again
    kinds = block_names(program.origins)
    return load(Source(source.name, print_graph(after, ops, kinds)), ops)  # it has no parameters


def _layouts(text: str, source: Source) -> list[str]:
    """The edited text, formatted if the source was."""
    try:
        if format_text(source) == source.text:
            return [format_text(Source(source.name, text))]
    except ArchirError:
        pass
    return [text]


class _Editor:
    def __init__(self, program: Program, after: Graph, ops: OpSet) -> None:
        self.program = program
        self.text = program.source.text
        self.after = after
        self.ops = ops
        self.blocks = {block.name.text: block for block in program.document.blocks}
        self.edits: dict[int, list[Edit]] = defaultdict(list)
        """The edits of each instance's body, by the identity of its scope."""
        self.overrides: dict[int, dict[str, str]] = defaultdict(dict)
        """The arguments that change in the call of an instance."""
        self.reading: dict[int, bool] = {}
        """Whether calls read sizes, by identity."""
        self.root = self._root()
        self.instances: list[Scope] = []
        self.children: dict[int, dict[int, list[Scope]]] = defaultdict(lambda: defaultdict(list))
        self._collect(self.root)

    def _root(self) -> Scope:
        for origin in self.program.origins.values():
            scope = origin.scope
            while scope.parent is not None:
                scope = scope.parent
            return scope
        raise CannotEdit("there is no node")

    def _collect(self, root: Scope) -> None:
        stack = [root]
        while stack:
            scope = stack.pop()
            if scope.block is not None:
                self.instances.append(scope)
                if scope.parent is not None:
                    owner = scope.parent.instance
                    self.children[id(owner)][id(scope.site)].append(scope)
            for group in scope.groups:
                stack += [m for m in reversed(group.members) if isinstance(m, Scope)]
        for sites in self.children.values():
            for calls in sites.values():
                calls.sort(key=lambda s: s.index or 0)

    def run(self) -> str:
        found = compare(self.program.graph, self.after)
        self._attributes(self._changed())
        for insertion in found.insertions:
            self._insert(insertion)
        for node in found.removals:
            self._remove(node)
        return self._compose()

    def restate(self, *, labels: bool = False) -> str:
        """The text with the touched statements stated anew; see :mod:`archir.lang.restating`."""
        self._attributes(self._changed())
        found = changes(self.program, self.after, self.root, self.instances)
        new = restated(self.program, self.after, self.ops, found, self.edits, labels=labels)
        self.edits = defaultdict(list, new)
        return self._compose()

    def _changed(self) -> list[tuple[Node, Node]]:
        pairs = []
        for node in self.after:
            if node.name in self.program.graph:
                old = self.program.graph.node(node.name)
                if repr(dict(old.attrs)) != repr(dict(node.attrs)) or self._measures(node.name):
                    pairs.append((old, node))
        return pairs

    def _measures(self, name: str) -> bool:
        """Whether a node's call reads sizes, so that it may come to say something else."""
        origin = self.program.origins[name]
        call = call_of(origin.site)
        if call is None or origin.index is not None:
            return False
        key = id(call)
        if key not in self.reading:
            self.reading[key] = any(measures(argument.value) for argument in call.arguments)
        return self.reading[key]

    # -- attributes

    def _attributes(self, pairs: list[tuple[Node, Node]]) -> None:
        changes: dict[int, list[tuple[Scope, t.Call, str, str, Edit]]] = defaultdict(list)
        for old, new in pairs:
            origin = self.program.origins[new.name]
            if isinstance(origin.site, t.TensorStatement):
                self.edits[id(origin.scope.instance)] += _sizes(old, new, origin.site)
                continue
            call = call_of(origin.site)
            if call is None or origin.index is not None:
                raise CannotEdit(f"{new.name} is not a call of its own")
            scope = origin.scope.instance
            for name, text, change in self._attribute_edits(old, new, call, origin):
                changes[id(scope)].append((scope, call, name, text, change))
        for key, entries in changes.items():
            scope = entries[0][0]
            lifted = self._lift(scope, entries)
            for _, _, _, _, change in entries:
                if change not in lifted:
                    self.edits[key].append(change)

    def _attribute_edits(
        self, old: Node, new: Node, call: t.Call, origin: Origin
    ) -> list[tuple[str, str, Edit]]:
        """The arguments that change in a call, so that it gives the new attributes."""
        op = self.ops[new.op]
        names = [attr.name for attr in op.attrs]
        given = Arguments(call, names, origin.scope, self.ops, self.blocks)
        types = tuple(self.after.type_of(value) for value in new.inputs)
        stated: dict[str, object] = {}
        for name, argument in given.by_name.items():
            value = argument.value
            same = isinstance(value, t.Name) and value.path == "same"
            if name in new.attrs:
                stated[name] = "same" if same else new.attrs[name]
        edits = []
        for name in names:
            changed = repr(old.attrs[name]) != repr(new.attrs[name])
            if name in given.by_name and measures(given.by_name[name].value):
                env = origin.scope.instance.env
                found = measured(given.by_name[name].value, env, self.after)
                changed = repr(found) != repr(words.compact(op, name, new.attrs[name]))
            if not changed or stated.get(name) == "same":
                continue
            try:
                bound = bind_attrs(op, stated, types)  # type: ignore[arg-type]
                implied = name not in stated and repr(bound[name]) == repr(new.attrs[name])
            except OpError:
                implied = False
            if implied:
                continue
            stated[name] = new.attrs[name]
            text = words.write_value(words.compact(op, name, new.attrs[name]))
            edits.append((name, text, given.change(name, text)))
        return edits

    def _lift(
        self, scope: Scope, entries: list[tuple[Scope, t.Call, str, str, Edit]]
    ) -> list[Edit]:
        """Move changes to the block's call, where a parameter is used for nothing else."""
        lifted: list[Edit] = []
        if scope.parent is None or scope.block is None:
            return lifted
        for formal in scope.block.formals:
            name = formal.name.text
            uses = [n for n in t.walk(scope.block) if isinstance(n, t.Name) and n.path == name]
            live = self._live_calls(scope)
            direct = [
                (call, argument.value)
                for call in t.walk(scope.block)
                if isinstance(call, t.Call)
                for argument in call.arguments
                if isinstance(argument.value, t.Name) and argument.value.path == name
            ]
            if formal.tensor or not direct or len(direct) != len(uses):
                continue
            found = [
                (text, change)
                for _, value in ((c, v) for c, v in direct if id(c) in live)
                for _, _, _, text, change in entries
                if (change.start, change.end) == (value.span.start, value.span.end)
            ]
            used = [value for call, value in direct if id(call) in live]
            texts = {text for text, _ in found}
            if used and len(found) == len(used) and len(texts) == 1:
                self.overrides[id(scope)][name] = texts.pop()
                lifted += [change for _, change in found]
        return lifted

    def _live_calls(self, scope: Scope) -> set[int]:
        """The calls that ran in an instance, by identity."""
        live = set()
        for origin in self.program.origins.values():
            call = call_of(origin.site)
            if origin.scope.instance is scope and call is not None:
                live.add(id(call))
        for calls in self.children[id(scope)].values():
            call = call_of(calls[0].site) if calls[0].site is not None else None
            if call is not None:
                live.add(id(call))
        return live

    # -- insertions

    def _insert(self, insertion: Insertion) -> None:
        origin = self.program.origins[insertion.value.node]
        if insertion.all_moved and self._extend(insertion, origin):
            return
        self._bind(insertion, origin)

    def _extend(self, insertion: Insertion, origin: Origin) -> bool:
        """Pipe the value into the new nodes where it is made; False where that cannot be."""
        scope, site, statement = origin.scope, origin.site, origin.statement
        if isinstance(site, t.InputStatement | t.TensorStatement | t.Literal):
            return False
        node = self.program.graph.node(insertion.value.node)
        if len(node.types) > 1 or origin.index is not None:
            return False
        label = ""
        single = origin.label is None and not origin.default
        if single:
            if scope.block is None:
                return False
            label = t.write_path(node.name[len(scope.path) + 1 :])
        while not self._below(insertion, scope):
            inner = scope.instance
            if inner.parent is None or inner.site is None or inner.statement is None:
                return False
            if inner.index is not None or not self._only_result(inner, insertion):
                return False
            scope, site, statement, label = inner.parent, inner.site, inner.statement, ""
        tail = "".join(
            f" |> {t.write_path(_local(node.name, scope))}: {self._call(node, scope)}"
            for node in insertion.nodes
        )
        self.edits[id(scope.instance)] += extend(site, statement, label, tail)
        return True

    def _below(self, insertion: Insertion, scope: Scope) -> bool:
        prefix = scope.path + "." if scope.path else ""
        return all(node.name.startswith(prefix) for node in insertion.nodes)

    def _only_result(self, scope: Scope, insertion: Insertion) -> bool:
        """Whether nothing inside an instance reads the value."""
        prefix = scope.path + "."
        return all(not reader.startswith(prefix) for reader, _ in insertion.moved)

    def _call(self, node: Node, scope: Scope) -> str:
        """A new node as a stage."""
        op = self.ops[node.op]
        rank = self.after.type_of(node.inputs[0]).rank
        texts = {
            name: words.write_value(words.compact(op, name, node.attrs[name]))
            for name in words.needed(op, node.attrs, rank)
        }
        others = [self._refer(value, scope) for value in node.inputs[1:]]
        renamed = words.suffix(words.renames(node.name, op, node.params))
        return words.call(op.name, others + words.arguments(op, texts), renamed)

    def _refer(self, value: Value, scope: Scope) -> str:
        """A name for a value in a body."""
        for name, bound in scope.instance.env.items():
            if isinstance(bound, Tensor) and (bound.draft.path, bound.port) == tuple(value):
                return "input" if name == "input" and scope.instance.parent else t.write_path(name)
        raise CannotEdit(f"{value} has no name there")

    def _bind(self, insertion: Insertion, origin: Origin) -> None:
        """Bind the new nodes to names of their own, and let the readers read those."""
        scope = origin.scope.instance
        prefix = scope.path + "." if scope.path else ""
        if not all(node.name.startswith(prefix) for node in insertion.nodes):
            raise CannotEdit("the new nodes stand elsewhere")
        name = self._refer(insertion.value, scope)
        at = origin.statement.span.end
        line_start = self.text.rfind("\n", 0, origin.statement.span.start) + 1
        before = self.text[line_start : origin.statement.span.start]
        indent = before if not before.strip() else "    "
        piped = name
        lines = ""
        for node in insertion.nodes:
            target = t.write_path(node.name[len(prefix) :])
            lines += f"\n{indent}{target} = {piped} |> {self._call(node, scope)}"
            piped = target
        names = self._readers(insertion, scope, name)
        self.edits[id(scope)].append(Edit(at, at, lines))
        self.edits[id(scope)] += [Edit(n.span.start, n.span.end, piped) for n in names]

    def _readers(self, insertion: Insertion, scope: Scope, name: str) -> list[t.Name]:
        """The references in a body that must name the new value."""
        assert scope.block is not None
        path = t.read_path(name)
        found: list[t.Name] = []
        for statement in scope.block.body:
            above = parents(statement)
            for node in t.walk(statement):
                if not (isinstance(node, t.Name) and node.path == path):
                    continue
                if insertion.all_moved or self._moves(node, above, scope, insertion):
                    found.append(node)
        if not found:
            raise CannotEdit("nothing names the value")
        return found

    def _moves(
        self, name: t.Name, above: dict[int, t.Tree], scope: Scope, insertion: Insertion
    ) -> bool:
        """Whether the reader behind a reference is one that moves."""
        moved = {reader for reader, _ in insertion.moved}
        node: t.Tree | None = above.get(id(name))
        if isinstance(node, t.Result):
            output = node.name.text if node.name else name.path
            return scope.parent is None and output in insertion.outputs
        if isinstance(node, t.Pipeline):
            node = node.stages[0]
        while node is not None:
            readers = self._made_by(node, scope)
            reading = [r for r in readers if insertion.value in self.program.graph.node(r).inputs]
            if reading:
                gone = [r for r in reading if r in moved]
                if gone and len(gone) != len(reading):
                    raise CannotEdit("some readers in a block move and others stay")
                return bool(gone)
            node = above.get(id(node))
        return False

    def _made_by(self, node: t.Tree, scope: Scope) -> list[str]:
        """The graph's nodes that a piece of syntax of a body makes."""
        own = [
            name
            for name, origin in self.program.origins.items()
            if origin.scope.instance is scope and origin.site is node
        ]
        for call in self.children[id(scope)].get(id(node), []):
            own += [n for n in self.program.origins if n.startswith(call.path + ".")]
        return own

    # -- removals

    def _remove(self, node: Node) -> None:
        origin = self.program.origins[node.name]
        site, scope = origin.site, origin.scope
        pipeline = parents(origin.statement).get(id(site))
        if not (isinstance(site, t.Stage) and isinstance(pipeline, t.Pipeline)):
            raise CannotEdit(f"{node.name} is no stage")
        if origin.index is not None or (origin.label is None and not origin.default):
            raise CannotEdit(f"{node.name} is all of its binding")
        place = next(i for i, stage in enumerate(pipeline.stages) if stage is site)
        start = pipeline.stages[place - 1].span.end if place else pipeline.head.span.end
        edits = self.edits[id(scope.instance)]
        edits.append(Edit(start, site.span.end, ""))
        gone = {id(stage) for stage in pipeline.stages}
        for name, other in self.program.origins.items():
            if other.scope is not scope or name == node.name or name not in self.after:
                continue
            alone = len(pipeline.stages) == 2 and id(other.site) in gone
            shifts = other.default and self.program.graph.node(name).op == node.op
            if (shifts or (alone and other.default)) and isinstance(other.site, t.Stage | t.Call):
                at = other.site.span.start
                label = Edit(at, at, f"{t.write_path(_local(name, scope))}: ")
                if label not in edits:
                    edits.append(label)

    # -- putting it together

    def _compose(self) -> str:
        names = set(self.blocks) | set(self.ops)
        forms: dict[int, Form] = {}
        edits: list[Edit] = []
        for block in self._callees_first():
            instances = [scope for scope in self.instances if scope.block is block]
            variants = {id(s): tuple(sorted(set(self._body(s, forms)))) for s in instances}
            self._share(block, instances, variants)
            counts = Counter(variants.values())
            here = () if () in counts else counts.most_common(1)[0][0] if counts else ()
            edits += here
            chosen = {here: block.name.text}
            copies = ""
            for variant in counts:
                if variant not in chosen:
                    chosen[variant] = _number(block.name.text, names)
                    copies += "\n\n" + self._copy(block, variant, chosen[variant])
            if copies:
                edits.append(Edit(block.span.end, block.span.end, copies))
            for scope in instances:
                changed = tuple(sorted(self.overrides[id(scope)].items()))
                forms[id(scope)] = (chosen[variants[id(scope)]], changed)
        edits += self._body(self.root, forms)
        return apply(self.text, dict.fromkeys(edits))

    def _share(
        self, block: t.Block, instances: list[Scope], variants: dict[int, tuple[Edit, ...]]
    ) -> None:
        """Let an instance take another's edits, where those beyond its own touch what never runs.

        So the blocks of a stage share a copy although only the first has a projection.
        """
        calls = [node for node in t.walk(block) if isinstance(node, t.Call)]
        for wide in sorted(set(variants.values()), key=len, reverse=True):
            for scope in instances:
                mine = variants[id(scope)]
                more = set(wide) - set(mine)
                if not mine or not more or not set(mine) <= set(wide):
                    continue
                live = self._live_calls(scope)
                dead = [call.span for call in calls if id(call) not in live]
                if all(any(d.start <= e.start and e.end <= d.end for d in dead) for e in more):
                    variants[id(scope)] = wide

    def _copy(self, block: t.Block, edits: tuple[Edit, ...], name: str) -> str:
        renamed = Edit(block.name.span.start, block.name.span.end, name)
        return apply(self.text, [renamed, *edits], block.span.start, block.span.end)

    def _callees_first(self) -> list[t.Block]:
        """The blocks in use, those that others call first."""
        order: dict[str, t.Block] = {}

        def visit(block: t.Block) -> None:
            if block.name.text in order:
                return
            for node in t.walk(block):
                if isinstance(node, t.Call) and node.callee.text in self.blocks:
                    visit(self.blocks[node.callee.text])
            order[block.name.text] = block

        for block in self.blocks.values():
            visit(block)
        return list(order.values())

    def _body(self, scope: Scope, forms: dict[int, Form]) -> list[Edit]:
        """The edits of an instance's body, those of the calls in it included."""
        edits = list(self.edits[id(scope)])
        for calls in self.children[id(scope)].values():
            assert calls[0].site is not None
            call = call_of(calls[0].site)
            assert call is not None
            plain = (call.callee.text, ())
            wanted = [forms[id(child)] for child in calls]
            if all(form == plain for form in wanted):
                continue
            if len(set(wanted)) == 1:
                edits += self._switch(call, wanted[0], scope)
                label, at = _named_by_block(calls[0]), calls[0].site.span.start
                if label and wanted[0][0] != call.callee.text:
                    edits.append(Edit(at, at, f"{t.write_path(label)}: "))
            else:
                edits.append(self._unroll(calls, call, wanted, scope))
        return edits

    def _switch(self, call: t.Call, form: Form, scope: Scope) -> list[Edit]:
        """The edits that let a call use another block or other arguments."""
        name, changed = form
        edits = []
        if name != call.callee.text:
            edits.append(Edit(call.callee.span.start, call.callee.span.end, t.write_path(name)))
        formals = [f.name.text for f in self.blocks[call.callee.text].formals if not f.tensor]
        given = Arguments(call, formals, scope, self.ops, self.blocks)
        return edits + [given.change(formal, text) for formal, text in changed]

    def _unroll(self, calls: list[Scope], call: t.Call, wanted: list[Form], scope: Scope) -> Edit:
        """A repeat whose rounds differ, as stages of their own."""
        site = calls[0].site
        assert isinstance(site, t.Stage)
        span = call.span
        label = calls[0].label or _named_by_block(calls[0])
        parts: list[str] = []
        index = 0
        while index < len(wanted):
            run = index
            while run < len(wanted) and wanted[run] == wanted[index]:
                run += 1
            text = apply(self.text, self._switch(call, wanted[index], scope), span.start, span.end)
            if not label:
                parts.append(f"{run - index} * {text}" if run - index > 1 else text)
            else:
                path = t.write_path
                parts += [f"{path(f'{label}.{i}')}: {text}" for i in range(index, run)]
            index = run
        return Edit(site.span.start, site.span.end, " |> ".join(parts))


def _local(name: str, scope: Scope) -> str:
    return name[len(scope.path) + 1 :] if scope.path else name


def _sizes(old: Node, new: Node, statement: t.TensorStatement) -> list[Edit]:
    """The edits of a free tensor's stated sizes."""
    was, now = old.attrs["shape"], new.attrs["shape"]
    rest = [{k: v for k, v in n.attrs.items() if k != "shape"} for n in (old, new)]
    assert isinstance(was, tuple)
    assert isinstance(now, tuple)
    if repr(rest[0]) != repr(rest[1]) or len(was) != len(now):
        raise CannotEdit(f"more than the sizes of {new.name} changes")
    return [
        Edit(dim.span.start, dim.span.end, words.write_value(b))
        for dim, a, b in zip(statement.type.dims, was, now, strict=True)
        if a != b
    ]


def _named_by_block(scope: Scope) -> str:
    """The path of an unlabelled instance in an output, which comes from its block's name."""
    if scope.label is not None or not isinstance(scope.statement, t.OutputStatement):
        return ""
    local = _local(scope.path, scope.parent.instance) if scope.parent is not None else ""
    return local if scope.index is None else local.removesuffix(f".{scope.index}")


def _number(name: str, taken: set[str]) -> str:
    """A fresh name for a copy of a block."""
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return fresh(f"{name}_{number}", taken)
