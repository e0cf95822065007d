from __future__ import annotations

import numpy as np
import pytest

from archir.ir.graph import Value
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.evaluate import run
from archir.train.data import load_data, normalise
from archir.train.evaluate import evaluate
from archir.weights.init import init_weights

from .nets import small


def test_agrees_with_the_reference_semantics() -> None:
    graph, data = small(4), load_data("digits")
    stated = (("mean", (0.3,)), ("std", (0.4,)))
    builder = graph.edit()
    builder.meta["preprocess"] = stated
    graph = builder.build()
    weights = init_weights(graph, STANDARD, 3, random_statistics=True)
    found = evaluate(graph, weights, data, "validation", device="cpu")
    wide = {path: array.astype(np.float64) for path, array in weights.items()}
    x = normalise(graph, data.validation.x).astype(np.float64)
    value = graph.outputs[0].value
    logits = run(graph, STANDARD, Floating(), {Value("image"): x}, wide).values[value]
    np.testing.assert_array_equal(found.predictions, logits.argmax(1))
    shifted = logits - logits.max(1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    loss = -log[np.arange(len(x)), data.validation.y].mean()
    assert abs(found.loss - loss) < 1e-5 * loss
    assert found.correct == (logits.argmax(1) == data.validation.y).sum()
    assert found.count == 180
    assert found.accuracy == found.correct / 180


@pytest.mark.parametrize(("split", "count"), [("train", 1258), ("validation", 180), ("test", 359)])
def test_every_image_is_predicted_whatever_the_batch(split: str, count: int) -> None:
    graph, data = small(4), load_data("digits")
    weights = init_weights(graph, STANDARD, 0)
    one = evaluate(graph, weights, data, split, device="cpu")
    other = evaluate(graph, weights, data, split, batch_size=7, device="cpu")
    assert one.predictions.dtype == np.int64
    assert one.count == count
    np.testing.assert_array_equal(one.predictions, other.predictions)
    assert abs(one.loss - other.loss) < 1e-5 * one.loss
