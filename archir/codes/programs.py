"""Codes of texts and rules: A0 to A4."""

from __future__ import annotations

from archir.codes.record import Code

CODES: dict[str, Code] = {
    "A001": Code(
        "unexpected text",
        "The text is not a program from here on: the message names what could stand instead. "
        "Statements need no separator; a statement ends where the next one begins.",
    ),
    "A002": Code(
        "unknown character",
        "The character has no meaning in the language outside strings, back-quoted names and "
        "comments.",
    ),
    "A003": Code(
        "unclosed quotes",
        "A string or a back-quoted name ends on the line where it begins. Strings are written in "
        'double quotes; \\" and \\n may stand inside.',
    ),
    "A004": Code(
        "text too long",
        "The text has more characters than are read. A network of that size is better written "
        "with blocks and repeats.",
    ),
    "A005": Code(
        "nested too deeply",
        "Brackets or expressions nest deeper than is read. Bind the inner part to a name.",
    ),
    "A006": Code("integer too long", "An integer in a text has at most 18 digits."),
    "A007": Code(
        "unknown version of the language",
        "The first line states the version of the language; this archir reads version 1.",
    ),
    "A008": Code(
        "wrong kind of block parameter",
        "A parameter of a block is a scalar (`width`, `stride = 1`) or a tensor (`skip: tensor`).",
    ),
    "A100": Code(
        "no arch, or several",
        "A file holds any number of blocks and exactly one arch, which stands last.",
    ),
    "A101": Code(
        "unknown name",
        "A name is used that nothing above it binds: neither a binding, an input, a parameter of "
        "the block, nor a `let`.",
    ),
    "A102": Code(
        "unknown operator or block",
        "What is called is neither an operator, nor a block of this file, nor one of the functions "
        "channels, size, rank, min, max.",
    ),
    "A103": Code(
        "bound twice",
        "A name is bound once in a body; a block has a name of its own that no operator has.",
    ),
    "A104": Code(
        "wrong number of tensors",
        "An operator was given more or fewer tensors than it takes. In a pipeline the piped value "
        "is the first of them; further tensors stand first in the parentheses.",
    ),
    "A105": Code(
        "two nodes or parameters of one path",
        "Every node has a path: its label or its binding within the instance of the block it "
        "stands in. Two nodes came to the same one; label one of them.",
    ),
    "A106": Code(
        "a layer needs a label",
        "An operator that holds parameters and is not the only one of its kind in its binding or "
        "block has no name of its own, and its weights no stable path. Write `name: operator`.",
    ),
    "A107": Code(
        "wrong kind of value",
        "A tensor stands where a scalar is wanted, or the other way round. Tensors are bound and "
        "piped; scalars are numbers, true, false, strings and lists, bound by `let`.",
    ),
    "A108": Code(
        "impossible arithmetic",
        "Scalars do not go together: numbers are wanted, the divisor is zero, an axis does not "
        "exist, or the result is out of range.",
    ),
    "A109": Code(
        "a block calls itself",
        "Blocks are expanded where they are called, so none may call itself, directly or through "
        "others. Repetition is written `x |> 3 * block`.",
    ),
    "A110": Code(
        "shapes do not fit",
        "The shapes of the operands do not satisfy the operator's axis signature. The message "
        "shows the shapes on both sides; `archir show` prints the shape of every layer.",
    ),
    "A111": Code(
        "a size cannot be solved",
        "A size is an integer times a product of symbols, or an exact quotient of such. What would "
        "need a floor or a sum of unlike symbols cannot be written; give the axis a number.",
    ),
    "A112": Code("unknown attribute", "The operator has no attribute of that name."),
    "A113": Code("missing attribute", "The operator needs an attribute that has no default."),
    "A114": Code(
        "wrong value of an attribute",
        "The attribute's value is of the wrong kind, out of range, or has the wrong number of "
        "entries.",
    ),
    "A115": Code(
        "no `same` padding for an even kernel",
        "`same` pads dilation * (kernel - 1) / 2 on both sides, which is whole for odd kernels "
        "only. State the padding.",
    ),
    "A116": Code(
        "too many arguments",
        "An operator or function is given more attributes than it has, or one of them twice.",
    ),
    "A117": Code(
        "operator does not go with tensors",
        "Tensors are joined by `+` and `*`, in one unparenthesised row of the same sign, and in "
        "pairs by `-` and `/`.",
    ),
    "A118": Code(
        "wrong arguments of a block",
        "A block is called with the tensors and scalars of its parameter list: the piped tensor is "
        "`input`, further tensors and scalars are bound in order or by keyword.",
    ),
    "A119": Code(
        "wrong number of results",
        "As many names stand before `=` as the operator or block has results.",
    ),
    "A120": Code(
        "nothing to tie to",
        "`weight = other.weight` shares a parameter by its path: a path in the same scope, or from "
        "the top of the network.",
    ),
    "A121": Code(
        "tied parameters differ", "Parameters that are one tensor have one type and one shape."
    ),
    "A122": Code(
        "network too large",
        "The network has more nodes, or takes more steps to build, than is allowed.",
    ),
    "A123": Code(
        "wrong tensor type",
        "A type is an element type and sizes: `f32[N, 3, 32, 32]`. A size is a whole number, a "
        "capitalised symbol, or a product of them; free tensors have whole numbers only.",
    ),
    "A124": Code(
        "wrong parameter of the arch",
        "Parameters of an arch are set with `--param NAME=VALUE`; one without a default must be.",
    ),
    "A125": Code(
        "statement out of place",
        "`input` and `preprocess` stand in an arch; a block's input is what is piped into it.",
    ),
    "A126": Code(
        "wrong preprocessing",
        '`preprocess { mean = [..], std = [..], size = 224, classes = ["a", ..] }`.',
    ),
    "A127": Code(
        "no output", "A block ends with one `output` statement, an arch has at least one."
    ),
    "A128": Code(
        "no such parameter to name",
        '`params { weight: "leaf" }` and `weight = path` name a parameter that the layer does not '
        "have.",
    ),
    "A140": Code(
        "a constant without a value",
        "A `parameter` that is not persistent (position indices, a mask) is a constant of the "
        "network: no seed gives it. `archir weights init` keeps those of the weights file beside "
        "the text; without that file the network has to be imported again.",
    ),
    "A141": Code(
        "a carried operator is stated wrong",
        "A use of `aten.NAME` states in `arguments` what torch is called with, as in a call of "
        "Python, every operand as x0, x1, ... (`x0, shifts=[1], dims=[2]`), and in `result` the "
        "types of what comes out (`f32[N, 3, 8], i64[N]`), in sizes that its operands have.",
    ),
    "A200": Code(
        "rule file too long",
        "The file has more characters than are read. Rules may be spread over several files.",
    ),
    "A201": Code(
        "unexpected text in a rule file",
        "The text is not a rule from here on. A rule holds a text that says what it does, "
        "`source`, `preserves`, and either `match`, `replace` and `weights`, or `over`, `produce`, "
        "`carry` and `consume`. Reading goes on at the next rule.",
    ),
    "A202": Code(
        "a part of the rule is missing or out of place",
        "A rule over a pattern has one `match` and one `replace`; a rule over an axis class has "
        "`over`, `produce`, `carry` and `consume`. Either begins with a text that says what it "
        "does.",
    ),
    "A203": Code(
        "two rules of one name",
        "Rules are called by their names, so a name stands for one rule: within a file, and among "
        "all installed packages and the files that are given.",
    ),
    "A204": Code(
        "wrong parameter of a rule",
        "A parameter is `name: kind = default`, the kind being int, odd, even, float or bool, and "
        "the default a value of that kind. Names are used once.",
    ),
    "A205": Code(
        "wrong contract",
        "A rule says what it keeps: `preserves function in eval, train` (or one of the two modes), "
        "or `preserves shape`, with `macs decreases`, `params decreases`, or `kept` (not more than "
        "before) in place of `decreases`.",
    ),
    "A206": Code(
        "the two sides of a rule do not belong together",
        "What the left side binds last is bound by the right side too, so that its readers have "
        "something to read; and the right side reads only what the left side names.",
    ),
    "A207": Code(
        "no such weight",
        "Under `weights`, each line gives one parameter of a layer of the right side its value: "
        "`label.role = ...`.",
    ),
    "A208": Code(
        "unknown weight function",
        "The weight language is a closed list of functions; the hint names the nearest.",
    ),
    "A209": Code(
        "this cannot stand in a pattern",
        "A side of a rule holds `name = ...` statements: operators with their tensors and "
        "attributes, pipelines, `+ - * /`, numbers. There are no blocks, repeats or conditions in "
        "it. On the left side an attribute is a number or a name.",
    ),
    "A210": Code(
        "unknown operator in a pattern", "A pattern is made of operators, by their names."
    ),
    "A211": Code(
        "the expression has no value",
        "A weight stands where a number belongs, a number where a weight belongs, or the "
        "arithmetic cannot be done with these values.",
    ),
    "A212": Code(
        "undefined name in a rule",
        "Expressions speak of the rule's parameters, of what `let` defines above them, of "
        "attributes that the left side binds, and of `label.attribute` and `label.role` of its "
        "layers.",
    ),
    "A213": Code(
        "no map of the class",
        "A rule over an axis class has one `let` with a map over the size of the class, such as "
        "`let g = replicate(size(c), width)`; it gives the new size.",
    ),
    "A214": Code(
        "rules of a package cannot be read",
        "An installed package offers rules but its folder of rule files cannot be found. "
        "Installing the package again may help.",
    ),
    "A215": Code(
        "a weight function without exact values",
        "A rule that keeps the function is checked in exact arithmetic wherever it is used, and "
        "there a singular value decomposition has no value. Rules with `svd_left` or `svd_right` "
        "preserve the shape.",
    ),
    "A220": Code(
        "a weight has the wrong shape",
        "The term that a rule gives for a parameter has another shape than the layer wants, or its "
        "functions are given arguments that do not fit. Both shapes are in the message.",
    ),
    "A221": Code(
        "a weight without a value",
        "Every parameter of a layer that a rule adds is given a value under `weights`.",
    ),
    "A302": Code(
        "the rule does not match there",
        "The message says which node stopped the match and what the rule wants of it; the hint "
        "names sites where it does match.",
    ),
    "A303": Code(
        "the axis cannot change",
        "Axes that change together form a class. Something holds this one fast: an input or output "
        "of the network, a softmax over it, a group of channels, a reshape that cuts it. The node "
        "is named.",
    ),
    "A304": Code(
        "no axis there",
        "The node neither makes, carries nor reads an axis that a rule over a class could change.",
    ),
    "A305": Code(
        "several axes there",
        "The node holds more than one axis class. `PATH.out` and `PATH.in` tell the produced from "
        "the consumed, `PATH.axis0` names an axis of a parameter; `archir rules FILE` lists them.",
    ),
    "A306": Code(
        "the right side does not fit there",
        "The rule matches, but what it would put in place is no legal network: a result of another "
        "type, an attribute out of range, or a weight that a layer outside the match shares.",
    ),
    "A307": Code(
        "wrong value of a rule's parameter",
        "The parameter is of another kind, or out of range.",
    ),
    "A310": Code(
        "the rule is refuted",
        "A counterexample shows that the rule does not keep what it promises, so it never runs. "
        "`archir prove RULE` prints it.",
    ),
    "A311": Code(
        "the rule has no verdict",
        "It is neither proved, nor tested, nor refuted. `--unproved` runs it all the same; its "
        "uses are checked one by one as always, and the certificate says so.",
    ),
    "A312": Code(
        "the result would be too large",
        "`--max-params` and `--max-macs` bound what a rewrite may make. Nothing was changed.",
    ),
    "A313": Code(
        "a rule that looks at weights, and there are none",
        "Rules such as `prune.magnitude`, `merge.duplicates` and `drop.unread` find the channels "
        "in the weights. `archir weights init` draws some; `prune.keep` is told which stay.",
    ),
    "A314": Code(
        "the weights are not as the rule assumes",
        "The rule keeps the function only where some weights have the values that it states "
        "(`assumes c.weight == ...`). The message says how far they are from that, as a share of "
        "their norm. `--approximate` applies it all the same and reports the drift.",
    ),
    "A401": Code(
        "the rewrite changes the function",
        "Both sides were computed exactly and differ. The rule or its weights are wrong; nothing "
        "was changed. `archir prove RULE` looks for a small counterexample.",
    ),
    "A402": Code(
        "no certificate that can be read",
        "The file is missing, not a certificate, of another version, or holds values of the wrong "
        "kind.",
    ),
    "A403": Code(
        "the weights are not fit to be compared",
        "The rewrite is exact, but with these weights the outputs are not finite or rounding moves "
        "them further than any sound network: its numbers span too wide a range.",
    ),
    "A404": Code(
        "a parent of the network is missing or was changed",
        "Replaying a certificate needs the parents in the `.lineage` folder beside the network, "
        "each under the hash of its content. Copy the folder along with the network.",
    ),
    "A405": Code(
        "a use that cannot be checked",
        "The rule's weights divide by a number that is 0 in every trial, so there is nothing to "
        "compare. Maps divide by counts and by roots of variances; by single weights they cannot.",
    ),
    "A410": Code(
        "wrong syntax in a file of axioms",
        "An axiom is a name, its modes, a text, declared variables, an equation and its side "
        "conditions; `rewrites/laws.axiom` shows many.",
    ),
    "A411": Code(
        "an axiom has no meaning",
        "Every variable is declared, every head is an operator or a function that proofs know, "
        "and what stands on the right occurs on the left.",
    ),
    "A412": Code(
        "two axioms of one name",
        "Two installed packages bring axioms of the same name. Rename one of them.",
    ),
    "A413": Code(
        "proving needs egglog",
        "Rules are proved by equality saturation with egglog, which the extra `archir[proof]` "
        "brings. Using rules needs none of it: shipped rules carry their verdicts.",
    ),
    "A414": Code(
        "the prover's process failed",
        "Proofs run in a process of their own. It ended with an error, which the message shows.",
    ),
    "A415": Code(
        "a proof is contradicted",
        "What was proved is not so in exact arithmetic: an axiom, or an operator's record, says "
        "what the operator's reference does not do. This is a fault of archir or of the package "
        "that brought the axiom, not of the rule.",
    ),
    "A420": Code(
        "taking the rewrite back would change the function",
        "Since the rewrite the weights have changed so that no parent's image are they: what was a "
        "copy differs from its original, or what was zero is not. The message says by how much. "
        "`--approximate` takes the nearest parent and the certificate says so; `--to-parent` goes "
        "back to the weights there were.",
    ),
    "A421": Code(
        "nothing to take back",
        "The certificate has no rewrite (or not so many) that was not taken back already, or the "
        "network was edited since its certificate was written. `archir lineage FILE` lists the "
        "steps.",
    ),
    "A422": Code(
        "the rewrite has no inverse",
        "The rule keeps the shape but not the function, or makes weights in a way that cannot be "
        "read backwards. `--to-parent` goes back to the network before it, without what was "
        "trained since.",
    ),
}
