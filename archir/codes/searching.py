"""Codes of searches: A7."""

from __future__ import annotations

from archir.codes.record import Code

CODES: dict[str, Code] = {
    "A710": Code(
        "the data of a search have changed",
        "A search loads its data again in each of its processes, and when it is resumed: they must "
        "have the hash that they had when it began.",
    ),
    "A711": Code(
        "the evaluation failed",
        "An evaluator raised an error that is none of archir's. The member is recorded as failed, "
        "with the error's text, and the search goes on.",
    ),
    "A712": Code(
        "a process of the search ended",
        "The process of an evaluation came to an end by itself: signal 9 is often want of memory. "
        "The evaluation is tried once more by itself, then recorded as failed. A process that ends "
        "before it has begun, or an evaluator that cannot be sent to one, ends the search.",
    ),
    "A713": Code(
        "wrong limit",
        "Limits of a search are whole numbers of at least 1 (parameters, MACs, evaluations), or "
        "seconds greater than 0 (latency, time).",
    ),
    "A714": Code(
        "no score",
        "An evaluator gives finite numbers by name, `score` among them, and a history of JSON "
        "values. The member is recorded as failed.",
    ),
    "A730": Code(
        "no last linear layer",
        "Random-weight evaluation trains the linear layer that makes the network's output, and no "
        "other layer. It takes networks whose one output [N, classes] is made by `linear`.",
    ),
    "A731": Code(
        "scores that cannot be ranked",
        "Rank correlation takes equally many scores and true values, three at least, all of them "
        "finite, and at least two different ones on each side.",
    ),
    "A732": Code(
        "not a cell of NAS-Bench-201",
        "A cell is six operations, in the order of the edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3: "
        "none, skip_connect, nor_conv_1x1, nor_conv_3x3 or avg_pool_3x3.",
    ),
    "A733": Code(
        "wrong setting of an evaluator",
        "A setting is of another kind, or out of the range that the message names.",
    ),
    "A734": Code(
        "numbers that are not finite",
        "With random weights the network's numbers grow beyond what floats hold, which happens in "
        "deep networks without normalisation. It has no such score.",
    ),
    "A735": Code(
        "nothing to score",
        "The network has no layer that the score looks at: nwot wants rectifiers (relu and its "
        "like), synflow, snip and grad_norm convolutions or linear layers.",
    ),
    "A750": Code(
        "a report of a damaged journal",
        "The journal of the run was changed by others than archir; the message names the line. A "
        "last line that was cut off is not counted: it belongs to a search that was interrupted.",
    ),
    "A751": Code(
        "a report of no run",
        "`archir report` takes the run folder of a search, which holds `journal.jsonl`: what "
        "`archir search --run` named.",
    ),
    "A752": Code(
        "what a report needs is not installed",
        "The page is made with jinja2, its axes with matplotlib: `pip install 'archir[search]'`. "
        "The exit status is 3.",
    ),
}
