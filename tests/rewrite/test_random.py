"""Random networks: every site of every rule that comes with archir is planned and checked."""

from __future__ import annotations

import numpy as np

from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.rewrite.sites import Planner

from .nets import IMAGE, LIBRARY, equal, net


class Draft:
    """A network in the making: lines of text, and the values with their channels and extents."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.lines: list[str] = []
        self.values = [("x", 3, 8)]
        self.layers: list[tuple[str, int, int]] = []

    def pick(self, *among: object) -> object:
        return among[int(self.rng.integers(len(among)))]

    def add(self, text: str, channels: int, size: int) -> None:
        name = f"v{len(self.values)}"
        self.lines.append(f"{name} = {text}")
        self.values.append((name, channels, size))

    def grow(self) -> None:
        """One more layer on one of the newest values."""
        recent = self.values[-3:]
        v, c, s = recent[int(self.rng.integers(len(recent)))]
        alike = [w for w, d, t in self.values if t == s and d in (1, c)]
        other = alike[int(self.rng.integers(len(alike)))]
        tied = [(w, o) for w, i, o in self.layers if i == c]
        match int(self.rng.integers(12)):
            case 0 | 1 | 2:
                out = (1, 2, 4, 6)[int(self.rng.integers(4))]
                self.add(f"{v} |> conv({out}, 3)", out, s)
                self.layers.append((self.values[-1][0], c, out))
            case 3:
                self.add(f"{v} |> {self.pick('relu', 'batch_norm', 'dropout', 'softmax(1)')}", c, s)
            case 4:
                many = c * int(self.rng.integers(1, 3))
                self.add(f"{v} |> conv({many}, 3, groups = {c})", many, s)
            case 5 if c % 2 == 0:
                self.add(f"{v} |> conv(6, 3, groups = 2)", 6, s)
            case 6:
                self.add(f"concat({v}, {v}, {v} |> relu)", 3 * c, s)
            case 7:
                self.add(f"{v} {self.pick('+', '*')} {other}", c, s)
            case 8 if s > 2:
                self.add(f"{v} |> {self.pick('max_pool', 'avg_pool')}(2)", c, s // 2)
            case 9 if c > 2:
                cut = int(self.rng.integers(1, c))
                self.lines.append(
                    f"p{len(self.values)}, q = split({v}, sizes = [{cut}, {c - cut}])"
                )
                self.add(f"p{len(self.values)} |> relu", cut, s)
                self.lines[-2] = self.lines[-2].replace(", q", f", q{len(self.values)}")
            case 10 if tied:
                layer, out = tied[int(self.rng.integers(len(tied)))]
                self.add(f"{v} |> conv({out}, 3, weight = {layer}.weight)", out, s)
            case _:
                name = f"o{len(self.lines)}"
                self.lines.append(f"output {name} = {v} |> flatten |> f{name}: linear(3)")

    def graph(self) -> Graph:
        last = self.values[-1][0]
        end = f"output y = {last} |> global_avg_pool |> fc: linear(5)"
        return net("\n".join([IMAGE, *self.lines, end]))


def test_every_site_of_random_networks() -> None:
    uses = 0
    kinds: set[str] = set()
    for seed in range(150):
        draft = Draft(seed)
        for _ in range(int(draft.rng.integers(3, 10))):
            draft.grow()
        graph = draft.graph()
        kinds |= {node.op for node in graph}
        planner = Planner(graph, STANDARD)
        for rule in LIBRARY.values():
            for site in planner.sites(rule):
                arguments = planner.example_arguments(rule, site.at)
                made = planner.plan(rule, site.at, arguments, seed)
                assert "eval" in equal(made)
                uses += 1
    assert uses > 250
    assert kinds >= {"split", "concat", "flatten", "softmax", "dropout", "batch_norm", "mul"}
