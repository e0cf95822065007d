"""Syntax tree to graph, with all errors of a file."""

from __future__ import annotations

from collections.abc import Mapping

from archir.diag import ArchirError, Diagnostic, Source, error
from archir.ir.graph import GraphBuilder, Node, Output, Parameter, Value
from archir.ir.memory import uncollected
from archir.ir.types import AttrValue, TensorType
from archir.lang import tree as t
from archir.lang.bodies import Results, run_body
from archir.lang.calls import FUNCTIONS
from archir.lang.evaluate import evaluate
from archir.lang.naming import give_names, join, place
from archir.lang.parsing import parse
from archir.lang.program import Draft, Group, Origin, Program, Scope, Tensor
from archir.lang.scalars import CONSTANTS
from archir.lang.state import POISON, Frame, State, StopError, suggest
from archir.ops.record import OpSet


def load(source: Source, ops: OpSet, params: Mapping[str, AttrValue] | None = None) -> Program:
    """Parse a file and build its network.

    ``params`` sets parameters of the arch.

    Raises:
        ArchirError: with every error of the file.
    """
    with uncollected():
        return elaborate(parse(source), ops, params or {})


def elaborate(document: t.Document, ops: OpSet, params: Mapping[str, AttrValue]) -> Program:
    """Build the network of a parsed file.

    Raises:
        ArchirError: with every error of the file.
    """
    source = document.source
    state = State(source, ops, {}, evaluate)
    try:
        _declare_blocks(document, state)
        arch = _the_arch(document, state)
    except StopError:
        arch = None
    if arch is None:
        raise ArchirError(*state.diagnostics())
    root = Scope(None, arch)
    results = Results()
    naming_problems: list[Diagnostic] = []
    stopped = False
    try:
        _bind_params(arch, params, root, state)
        results = run_body(root, state)
        _check_idle_blocks(document, state)
    except StopError:
        stopped = True
    naming = give_names(root)
    if not state.problems:
        naming_problems = naming.problems
    if state.problems or naming_problems or stopped:
        raise ArchirError(*_sorted([*state.diagnostics(), *naming_problems]))
    params_of = _parameters(state)
    outputs = _outputs(arch, results, state)
    if state.problems:
        raise ArchirError(*state.diagnostics())
    builder = GraphBuilder(arch.name.text)
    origins: dict[str, Origin] = {}
    for draft, paths in zip(state.drafts, params_of, strict=True):
        builder.add(
            Node(
                draft.path,
                draft.op,
                draft.attrs,
                tuple(Value(tensor.draft.path, tensor.port) for tensor in draft.inputs),
                {role: parameter.path for role, parameter in paths.items()},
                draft.types,
            )
        )
        for parameter in paths.values():
            builder.parameters.setdefault(parameter.path, parameter)
        origins[draft.path] = Origin(
            draft.span,
            draft.site,
            draft.statement,
            draft.scope,
            draft.label,
            draft.index,
            draft.path in naming.defaults,
        )
    builder.inputs = [draft.path for draft in results.inputs]
    builder.outputs = outputs
    builder.meta = results.meta
    return Program(source, document, builder.build(), origins, dict(params))


def _sorted(diagnostics: list[Diagnostic]) -> list[Diagnostic]:
    return sorted(diagnostics, key=lambda d: (d.span.start, d.span.end) if d.span else (0, 0))


def _declare_blocks(document: t.Document, state: State) -> None:
    for block in document.blocks:
        name = block.name.text
        if name in state.blocks:
            first = place(state.blocks[name].name.span)
            state.report(
                "A103",
                f"block `{name}` is defined twice; first {first}",
                block.name.span,
                hint="choose another name",
            )
        elif name in state.ops or name in FUNCTIONS:
            what = "an operator" if name in state.ops else "a function"
            state.report(
                "A103",
                f"`{name}` is the name of {what}",
                block.name.span,
                hint="choose another name",
            )
        else:
            state.blocks[name] = block
        _check_formals(block, state)


def _check_formals(item: t.Block | t.Arch, state: State) -> None:
    seen: set[str] = set()
    for formal in item.formals:
        name = formal.name.text
        if name in seen or name == "input":
            state.report(
                "A103", f"the parameter `{name}` is there already", formal.name.span,
                hint="choose another name",
            )  # fmt: skip
        seen.add(name)


def _the_arch(document: t.Document, state: State) -> t.Arch | None:
    archs = document.archs
    if not archs:
        raise error(
            "A100",
            "the file has no arch",
            hint="a network is written `arch NAME { input ... output ... }`",
        )
    for extra in archs[1:]:
        state.report(
            "A100",
            f"a file has one arch; the first is {place(archs[0].name.span)}",
            extra.name.span,
            hint="what several networks share is a block",
        )
    if len(archs) == 1 and document.items[-1] is not archs[0]:
        state.report(
            "A100",
            "the arch stands last, after all blocks",
            archs[0].name.span,
            hint="move the blocks before it",
        )
    _check_formals(archs[0], state)
    return archs[0]


def _check_idle_blocks(document: t.Document, state: State) -> None:
    """Check the names in blocks that were never instantiated: no shapes are known there."""
    known = [*state.ops, *state.blocks, *FUNCTIONS]
    for block in document.blocks:
        if block.name.text in state.ran:
            continue
        local = {"input", *CONSTANTS, *(formal.name.text for formal in block.formals)}
        for node in t.walk(block):
            if isinstance(node, t.Bind):
                local |= {target.text for target in node.targets}
            elif isinstance(node, t.Let | t.TensorStatement):
                local.add(node.name.text)
        paths = {
            id(a.value)
            for node in t.walk(block)
            if isinstance(node, t.Call)
            for a in node.arguments
            if a.keyword is not None and isinstance(a.value, t.Name) and "." in a.value.path
        }
        for node in t.walk(block):
            if isinstance(node, t.Call) and node.callee.text not in known:
                name = node.callee.text
                message = f"there is no operator or block `{name}`"
                state.report("A102", message, node.callee.span, hint=suggest(name, known))
            elif isinstance(node, t.Name) and node.path not in local and id(node) not in paths:
                message = f"`{node.path}` is not defined"
                state.report("A101", message, node.span, hint=suggest(node.path, local))


def _bind_params(arch: t.Arch, params: Mapping[str, AttrValue], root: Scope, state: State) -> None:
    known = [formal.name.text for formal in arch.formals]
    for name in params:
        if name not in known:
            state.report(
                "A124",
                f"`{arch.name.text}` has no parameter `{name}`",
                arch.formals_span or arch.name.span,
                hint=suggest(name, known, f"it has {', '.join(known) or 'none'}"),
            )
    for formal in arch.formals:
        name = formal.name.text
        if formal.tensor:
            root.env[name] = state.report(
                "A125",
                "a parameter of an arch is a scalar",
                formal.span,
                hint=f"a tensor is stated in the body: `input {name}: f32[N, 3, 32, 32]`",
            )
        elif name in params:
            root.env[name] = params[name]
        elif formal.default is not None:
            statement = t.Let(formal.span, formal.name, formal.default)
            frame = Frame(root, root.env, Group(None, opens=False), statement, state)
            value = frame.evaluate(formal.default)
            root.env[name] = value if not isinstance(value, Tensor) else POISON
        else:
            root.env[name] = state.report(
                "A124",
                f"the parameter `{name}` has no value",
                formal.span,
                hint=f"give it a default, or set it with `--param {name}=...`",
            )


# -- parameters


def _parameters(state: State) -> list[dict[str, Parameter]]:
    """The parameters of every draft by role, ties followed."""
    owned: dict[str, tuple[Parameter, Draft]] = {}
    found: list[dict[str, Parameter]] = []
    for draft in state.drafts:
        mine: dict[str, Parameter] = {}
        tied = {role for role, _ in draft.ties}
        renames = {rename.role.text: rename for rename in draft.renames}
        for role, type_ in draft.params.items():
            if role in tied:
                continue
            rename = renames.get(role)
            path = _path_of(draft, role, rename)
            parameter = Parameter(path, type_, role in draft.buffers)
            mine[role] = parameter
            if path in owned:
                _share(rename, parameter, owned[path], draft, state)
            owned.setdefault(path, (parameter, draft))
        found.append(mine)
    for draft, mine in zip(state.drafts, found, strict=True):
        for role, name in draft.ties:
            tied_to = _resolve(name, draft, role, owned, state)
            if tied_to is not None:
                mine[role] = tied_to
    for draft, mine in zip(state.drafts, found, strict=True):
        if draft.ties:
            ordered = {role: mine[role] for role in draft.params if role in mine}
            mine.clear()
            mine.update(ordered)
    return found


def _share(
    rename: t.Rename | None,
    parameter: Parameter,
    other: tuple[Parameter, Draft],
    draft: Draft,
    state: State,
) -> None:
    """Two nodes state one parameter path: right only if the second names it absolutely."""
    if rename is None or not (rename.absolute or rename.below):
        state.report(
            "A105",
            f"two parameters are named `{parameter.path}`; the other is {place(other[1].span)}",
            rename.span if rename is not None else draft.span,
            hint="to share it, write its path: `weight = other.weight`",
        )
    elif other[0] != parameter:
        state.report(
            "A121",
            f"the parameter is {parameter.type}, `{parameter.path}` is {other[0].type}",
            rename.span,
            hint="tied parameters have one shape",
        )


def _path_of(draft: Draft, role: str, rename: t.Rename | None) -> str:
    if rename is not None:
        above = draft.scope.path if rename.below else draft.path
        return rename.target if rename.absolute else join(above, rename.target)
    return draft.path if draft.op == "parameter" else join(draft.path, role)


def _resolve(
    name: t.Name,
    draft: Draft,
    role: str,
    owned: Mapping[str, tuple[Parameter, Draft]],
    state: State,
) -> Parameter | None:
    found = None
    scope: Scope | None = draft.scope
    while scope is not None and found is None:
        found = owned.get(join(scope.path, name.path))
        scope = scope.parent
    if found is None:
        state.report(
            "A120",
            f"there is no parameter `{name.path}` to tie `{role}` to",
            name.span,
            hint=suggest(name.path, owned, "a path is a node's path and the parameter's name"),
            scope=draft.scope,
        )
        return None
    parameter = found[0]
    wanted: TensorType = draft.params[role]
    buffer = role in draft.buffers
    if parameter.type != wanted or parameter.buffer != buffer:
        kinds = {True: "buffer ", False: ""}
        state.report(
            "A121",
            f"`{role}` is {kinds[buffer]}{wanted}, `{parameter.path}` is "
            f"{kinds[parameter.buffer]}{parameter.type}",
            name.span,
            hint="tied parameters have one shape",
            scope=draft.scope,
        )
        return None
    return parameter


# -- outputs


def _outputs(arch: t.Arch, results: Results, state: State) -> list[Output]:
    if not results.outputs:
        state.report(
            "A127",
            f"`{arch.name.text}` has no output",
            arch.name.span,
            hint="end it with `output logits = ...`",
        )
    outputs: list[Output] = []
    taken: set[str] = set()
    for stated, result, value in results.outputs:
        name = stated if stated is not None else _free_name(result, taken)
        if name in taken:
            state.report("A103", f"two outputs are named `{name}`", result.span)
        taken.add(name)
        assert isinstance(value, Tensor)
        outputs.append(Output(name, Value(value.draft.path, value.port)))
    return outputs


def _free_name(result: t.Result, taken: set[str]) -> str:
    plain = result.value.path if isinstance(result.value, t.Name) else "output"
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}{number}"
    return name
