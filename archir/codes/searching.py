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
}
