"""Verdicts: proofs, tests, counterexamples, budgets, and what is shipped."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from importlib.resources import files

import numpy as np
import pytest
from click.testing import CliRunner

from archir import api
from archir.cli.prove import command
from archir.diag import UNSUPPORTED, ArchirError, Source
from archir.ir.types import TensorType
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.record import Law, Op, OpSet, Sample
from archir.proof import saturation
from archir.proof.attempts import saturated
from archir.proof.audit import audit_terms
from archir.proof.axiom_texts import texts_in, texts_of
from archir.proof.lemmas import lemmas
from archir.proof.prove import TESTED, prove, tried, verdict_for
from archir.proof.saturation import Budget
from archir.proof.symbols import Symbols
from archir.proof.terms import Variable, apply
from archir.proof.verdict import Verdict, document_of, verdict_of

SHIPPED = files("archir.rewrites")

BYSTANDER = """rule drop_nothing {
    "A dropout that drops nothing."
    preserves function in eval, train
    match   { y = dropout(x, p = 0.0) |> relu }
    replace { y = relu(x) }
}"""
DEEPEN_LINEAR = """rule deepen.linear {
    "Insert an identity matrix after a ReLU."
    preserves function in eval, train
    match   { y = relu(x) }                                     where rank(x) == 2
    replace { y = relu(x) |> new: linear(channels(x)) |> relu }
    weights { new.weight = identity(channels(x))    new.bias = zeros(channels(x)) }
}"""
DILATED = """rule deepen.dilated(kernel: odd = 3, step: int = 2) {
    "An identity convolution may be dilated."
    preserves function in eval, train
    match   { y = relu(x) }                                     where rank(x) == 4
    replace { y = relu(x) |> new: conv(channels(x), kernel, dilation = step, bias = false) }
    weights { new.weight = identity(channels(x), kernel, kernel) }
}"""
FOLD = """rule fold {
    "Fold a batch normalisation into the convolution before it."
    preserves function in eval
    match   { y = x |> c: conv(groups = 1, bias = false)
                    |> b: batch_norm(affine = true, track = true) }
                                                             where rank(x) == 4, c.kernel == 1
    replace { y = x |> new: conv(channels(y), c.kernel, c.stride, c.padding, c.dilation) }
    weights {
        let s = b.weight / sqrt(b.running_var + b.eps)
        new.weight = c.weight * along(s, 0, 4)
        new.bias   = b.bias - b.running_mean * s
    }
}"""
SHRINK = """rule narrow_window {
    "A smaller kernel of the same shape."
    preserves shape
    macs decreases
    match   { y = c: conv(x, kernel = 3, padding = 1, bias = true) }        where rank(x) == 4
    replace { y = x |> new: conv(channels(y), 1, c.stride) }
    weights { new.weight = zeros(channels(y), channels(x), 1, 1)  new.bias = c.bias }
}"""


SUMS = """rule sums {
    "In any order."
    preserves function in eval, train
    match   { y = add(add(a, b), c) |> relu }
    replace { y = add(c, b, a) |> relu |> relu }
}"""


@pytest.mark.parametrize("text", [BYSTANDER, DEEPEN_LINEAR, DILATED, SUMS])
def test_a_users_rule_is_proved_like_a_shipped_one(text, read, axioms) -> None:
    verdict = prove(read(text), STANDARD, axioms)
    assert [m.kind for m in verdict.modes] == ["proved"] * len(verdict.modes)


def test_what_is_not_proved_is_tested(read, axioms) -> None:
    verdict = prove(read(FOLD), STANDARD, axioms)
    assert verdict.kind == "tested"
    assert verdict.modes[0].instances == TESTED
    assert "no proof" in verdict.modes[0].reason


def test_a_wrong_fold_is_refuted_in_a_small_network(read, axioms) -> None:
    verdict = prove(read(FOLD.replace("b.bias - b.running_mean * s", "b.bias")), STANDARD, axioms)
    (held,) = verdict.modes
    assert held.kind == "refuted"
    against = held.counterexample
    graph = load(Source("against.arch", against.network), STANDARD).graph
    assert all(size in (1, 2) for size in graph.node(graph.inputs[0]).types[0].shape[1:])
    assert against.text().count("c.weight") >= 1
    assert "new.bias after = " in against.text()


def test_batch_norm_is_deepened_in_evaluation_only(library, axioms) -> None:
    rule = library["deepen.batch_norm"]
    assert saturated(rule, STANDARD, axioms, "eval", Budget())[1] == ""
    assert "no proof" in saturated(rule, STANDARD, axioms, "train", Budget())[1]


def test_shape_and_cost_claims(read, axioms) -> None:
    verdict = prove(read(SHRINK), STANDARD, axioms)
    assert [(m.mode, m.kind) for m in verdict.modes] == [("shape", "tested")]
    more = SHRINK.replace(
        "new: conv(channels(y), 1, c.stride)", "new: conv(channels(y), 5, c.stride)"
    )
    more = more.replace("channels(x), 1, 1", "channels(x), 5, 5")
    refuted = prove(read(more), STANDARD, axioms)
    assert refuted.kind == "refuted"
    assert refuted.modes[0].counterexample.value == "macs"


def test_lemmas_cover_every_operator_that_holds_a_class(library) -> None:
    for mode in ("eval", "train"):
        held = {lemma.op for lemma in lemmas(library["widen"], STANDARD, mode)}
        without = set(STANDARD) - held - {""}
        random = {"dropout", "stochastic_depth"} if mode == "train" else set()
        assert without == {"input", "constant"} | random


def test_a_new_operator_gets_its_lemma(library, axioms, few) -> None:
    def twice(k, x, p, a, mode):
        return (k.add(x[0], x[0]),)

    def summed(k, x, p, a, mode):
        total = k.sum(x[0], (1,))
        return (k.add(x[0], total.reshape(total.shape[0], 1, *total.shape[1:])),)

    sample = (Sample((TensorType("f32", (2, 3, 4)),)),)
    right = Op("twice", "2x.", "x[...] -> [...]", twice, sample, laws=frozenset({Law.ELEMENTWISE}))
    wrong = Op(
        "summed", "Mixes.", "x[...] -> [...]", summed, sample, laws=frozenset({Law.ELEMENTWISE})
    )
    proofs, reason = saturated(
        library["widen"],
        OpSet([*few.values(), right]),
        axioms,
        "eval",
        Budget(),
        minimal=False,
    )
    assert reason == ""
    assert any("twice" in p.goal for p in proofs)
    with pytest.raises(ArchirError, match="A415"):
        saturated(
            library["widen"],
            OpSet([*few.values(), wrong]),
            axioms,
            "eval",
            Budget(),
            minimal=False,
        )


def test_terms_that_differ_are_an_error() -> None:
    x = Variable("x")
    values = {"x": np.arange(1.0, 7.0).reshape(2, 3)}
    assert audit_terms("same", [x, apply("add", x, 0)], STANDARD, "eval", values) == 2
    with pytest.raises(ArchirError, match="A415"):
        audit_terms("other", [x, apply("add", x, 1)], STANDARD, "eval", values)


def test_goals_that_do_not_say_what_the_rule_does_are_an_error(
    read, library, axioms, monkeypatch
) -> None:
    text = library["deepen"].text
    wrong = read(text.replace("= identity", "= 2 * identity"))
    assert "no proof" in saturated(wrong, STANDARD, axioms, "eval", Budget())[1]
    monkeypatch.setattr(Symbols, "_binary", lambda self, sign, a, b: b)
    with pytest.raises(ArchirError, match="A415"):
        saturated(wrong, STANDARD, axioms, "eval", Budget())


def test_a_proof_can_be_cut_short(library, axioms) -> None:
    start = time.monotonic()
    verdict = prove(library["widen"], STANDARD, axioms, budget=Budget(seconds=0.05))
    assert verdict.kind == "tested"
    assert "0.05 s" in verdict.modes[0].reason
    assert time.monotonic() - start < 20
    assert prove(library["deepen"], STANDARD, axioms, budget=Budget(steps=1)).kind == "tested"


def test_verdicts_survive_json(read, axioms) -> None:
    for text in (BYSTANDER, FOLD.replace(" - b.running_mean * s", "")):
        verdict = prove(read(text), STANDARD, axioms)
        again = Verdict.from_json(json.loads(json.dumps(verdict.to_json())))
        assert again.to_json() == verdict.to_json()
        assert again.kind == verdict.kind


def test_shipped_verdicts_are_fresh(library, axioms) -> None:
    """If this fails: `archir prove --write`."""
    document = json.loads(SHIPPED.joinpath("verdicts.json").read_text(encoding="utf-8"))
    own = [r for r in library.values() if r.package == "archir"]
    assert set(document["rules"]) == {r.hash for r in own}
    for rule in own:
        verdict = verdict_of(rule, SHIPPED)
        assert verdict.kind == ("proved" if rule.contract.function else "tested")
        assert verdict.axioms == axioms.hash_of(a for m in verdict.modes for a in m.axioms)
        promised = [*rule.contract.function, *(["shape"] if rule.contract.shape else [])]
        assert [m.mode for m in verdict.modes] == promised
        assert set(verdict.operators) in (set(), set(STANDARD))


def test_a_verdict_lasts_as_long_as_the_rule_and_the_axioms_that_it_used(
    library, read, axioms, tmp_path
) -> None:
    rule = library["deepen"]
    proved = prove(rule, STANDARD, axioms)
    assert proved.kind == "proved"
    (tmp_path / "verdicts.json").write_text(document_of([proved]))
    whole = "\n\n".join(axiom.text for axiom in axioms.axioms)

    def lasts(text: str) -> bool:
        (tmp_path / "laws.axiom").write_text(text)
        return verdict_of(rule, tmp_path) is not None

    assert lasts(whole)
    assert lasts(whole + ' axiom more in eval { "Another." for x[...] relu(x) == x }')
    assert lasts(whole.replace("crop(x, same(k, d))", "  crop(x,  # as it must\n same(k, d))"))
    assert not lasts(whole.replace("crop(x, same(k, d))", "crop(x, same(d, k))"))
    assert not lasts(whole.replace("axiom windows.identity ", "axiom windows.identical "))
    unused = "axiom batch_norm.new_mean"
    assert unused in whole
    assert lasts(whole.replace(unused, "axiom batch_norm.newer_mean"))
    assert lasts(whole)
    assert verdict_of(read(rule.text.replace("odd = 3", "odd = 5")), tmp_path) is None
    assert verdict_of(rule, tmp_path / "nowhere") is None


def test_a_verdict_without_a_proof_rests_on_the_rule_alone(read, axioms, tmp_path) -> None:
    rule = read(FOLD)
    verdict = tried(rule, STANDARD, count=2)
    assert verdict.kind == "tested"
    (tmp_path / "verdicts.json").write_text(document_of([verdict]))
    assert verdict_of(rule, tmp_path) == Verdict.from_json(verdict.to_json())


def test_texts_of_axioms_are_those_of_the_parser(axioms) -> None:
    texts = texts_in(SHIPPED)
    assert set(texts) == {a.name for a in axioms.axioms}
    for axiom in axioms.axioms:
        assert texts_of(axiom.text) == {axiom.name: texts[axiom.name]}
    odd = 'axiom a in eval { "axiom b in # eval \\" x" for x[...] relu(x) == x } # axiom c in eval'
    assert texts_of(odd + "\n") == {"a": odd.split(" # ax", maxsplit=1)[0]}


def test_a_proof_speaks_of_the_operators_it_had(tmp_path) -> None:
    """A class that meets an operator of another package is no more than tested."""
    other = Op(
        "half",
        "x / 2.",
        "x[...] -> [...]",
        lambda k, x, p, a, mode: (k.divide(x[0], k.array(2)),),
        (
            Sample(
                (TensorType("f32", (2, 3))),
            ),
        ),
    )
    ops = OpSet([*STANDARD.values(), other])
    kinds = []
    text = """version 1
arch small {
    input image: f32[N, 1, 3, 4]
    output out = image |> one: conv(3) |> relu |> two: conv(2)
}
"""
    path = tmp_path / "small.arch"
    path.write_text(text)
    network = api.load(path)
    for name in ("relu", "half"):
        program = load(Source("small.arch", text.replace("relu", name)), ops)
        changed = dataclasses.replace(network, program=program, ops=ops)
        (use,) = api.rewrite(changed, [api.Application("widen", "one", {"width": 5})]).uses
        assert use.checks[0].equal
        kinds.append((use.verdict["kind"], use.verdict["modes"]["train"]))
    assert kinds == [("proved", "proved"), ("tested", "tested")]


def test_without_egglog(library, read, monkeypatch, axioms) -> None:
    monkeypatch.setattr(saturation.importlib.util, "find_spec", lambda name: None)
    assert verdict_for(library["widen"], STANDARD).kind == "proved"
    assert verdict_for(read(BYSTANDER), STANDARD).kind == "tested"
    with pytest.raises(ArchirError) as failure:
        prove(read(BYSTANDER), STANDARD, axioms)
    assert failure.value.status == UNSUPPORTED
    assert failure.value.diagnostics[0].code == "A413"
    assert tried(read(BYSTANDER), STANDARD, count=3).modes[0].instances == 3


def test_proving_imports_neither_torch_nor_onnx_nor_egglog() -> None:
    code = (
        "import sys, archir.proof.prove, archir.cli.prove\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'egglog') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def run(*args: str):
    return CliRunner().invoke(command, list(args))


def test_the_command(tmp_path, monkeypatch) -> None:
    shown = run()
    assert shown.exit_code == 0
    assert "deepen.batch_norm" in shown.output
    document = json.loads(run("widen", "--json").output)
    assert document["verdicts"][0]["kind"] == "proved"
    wrong = tmp_path / "wrong.rule"
    wrong.write_text(FOLD.replace(" - b.running_mean * s", ""))
    refuted = run(str(wrong))
    assert refuted.exit_code == 1
    assert "before and" in refuted.output
    right = tmp_path / "right.rule"
    right.write_text(BYSTANDER)
    monkeypatch.setattr(saturation.importlib.util, "find_spec", lambda name: None)
    assert run(str(right)).exit_code == UNSUPPORTED
    assert run("deepen").exit_code == 0
    assert run("no_such_rule").exit_code == 2


def test_a_map_that_divides_by_zero_has_no_verdict(read) -> None:
    """Nothing of it can be tried; that is no fault of archir's."""
    scaled = """rule scaled {
    "A weight divided by nothing."
    preserves function in eval
    match   { y = x |> c: conv(o) }
    replace { y = x |> c: conv(o, c.kernel, c.stride, c.padding, c.dilation, c.groups) }
    weights { c.weight = c.weight / zeros(1) }
}"""
    assert tried(read(scaled), STANDARD).kind == "unknown"
