"""The source of a lowered module's ``forward``: layers are reached without a detour.

torch.fx writes ``getattr(self.layer1, "0").conv1(x)``. torch's modules look up each of these names
in Python, after all else an attribute could be; where layers are small or a GPU is quick, that
is some per cent of a forward pass. A module's children lie in a dictionary, ``_modules``, and the
source asks it directly: what is put in a layer's place later is found there too.
"""

from __future__ import annotations

import ast


def direct(body: list[str]) -> list[str]:
    """The lines of ``forward``, each call of a layer written by way of the dictionaries.

    For :meth:`torch.fx.Graph.on_generate_code`. What is no such call stays as it is.
    """
    return [_line(text) for text in body]


def _line(text: str) -> str:
    name, _, value = text.partition(" = ")
    if not value.startswith(("self.", "getattr(")):
        return text
    try:
        call = ast.parse(value, mode="eval").body
    except SyntaxError:
        return text
    path = _path(call.func) if isinstance(call, ast.Call) else None
    if not path:
        return text
    assert isinstance(call, ast.Call)
    assert call.func.end_col_offset is not None
    steps = "".join(f"._modules[{segment!r}]" for segment in path)
    rest = value.encode()[call.func.end_col_offset :].decode()  # columns are counted in bytes
    return f"{name} = self{steps}{rest}"


def _path(callee: ast.expr) -> list[str] | None:
    """The names that lead from ``self`` to what is called; None where it is nothing below it."""
    match callee:
        case ast.Name("self"):
            return []
        case ast.Attribute(parent, str(name)):
            above = _path(parent)
        case ast.Call(ast.Name("getattr"), [parent, ast.Constant(str(name))]):
            above = _path(parent)
        case _:
            return None
    return None if above is None else [*above, name]
