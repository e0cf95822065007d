"""What the tests of the prover share."""

from __future__ import annotations

import re

import pytest

from archir.diag import Source
from archir.ops import STANDARD
from archir.ops.record import OpSet
from archir.proof.axioms import Axioms, installed_axioms
from archir.rewrite.library import Library, installed
from archir.rewrite.rule import Rule
from archir.rewrite.rulefile import parse_rules


@pytest.fixture(scope="session")
def few(axioms) -> OpSet:
    """The operators that axioms name, and a few more: enough where it is not about operators."""
    text = " ".join(axiom.text for axiom in axioms.axioms)
    named = {name for name in STANDARD if re.search(rf"\b{name}[.(\w]*\(", text)}
    more = {"conv", "linear", "batch_norm", "relu", "add", "dropout", "parameter"}
    return OpSet([op for name, op in STANDARD.items() if name in named | more])


@pytest.fixture(scope="session")
def axioms() -> Axioms:
    return installed_axioms()


@pytest.fixture(scope="session")
def library() -> Library:
    return installed(STANDARD)


@pytest.fixture(scope="session")
def read():
    def one(text: str) -> Rule:
        (rule,) = parse_rules(Source("test.rule", text), STANDARD)
        return rule

    return one
