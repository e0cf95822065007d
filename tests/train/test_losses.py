from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

from archir.diag import BAD_INPUT, ArchirError
from archir.train.losses import distillation, make_loss

BOUND = 1e-12
"""Of what a loss of float64 logits may differ by from NumPy's."""


def sample(rows: int = 6, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, generator=drawn, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=drawn)


def targets(y: torch.Tensor, classes: int, smoothing: float) -> np.ndarray:
    return np.eye(classes)[y.numpy()] * (1 - smoothing) + smoothing / classes


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_named_losses_by_hand(smoothing: float) -> None:
    logits, y = sample()
    z, wanted = logits.numpy(), targets(y, 5, smoothing)
    sigmoid = special.expit(z)
    by_hand = {
        "cross_entropy": -(wanted * special.log_softmax(z, 1)).sum(1).mean(),
        "binary_cross_entropy": -(
            wanted * np.log(sigmoid) + (1 - wanted) * np.log(1 - sigmoid)
        ).mean(),
        "mse": ((z - wanted) ** 2).mean(),
    }
    for name, value in by_hand.items():
        found = make_loss(name, label_smoothing=smoothing)(logits, y)
        assert found.shape == ()
        assert abs(float(found) - value) < BOUND, name


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_has_the_bits_of_torchs(smoothing: float) -> None:
    logits, y = sample(50)
    logits = logits.float()
    found = make_loss("cross_entropy", label_smoothing=smoothing)(logits, y)
    wanted = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, y)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_gradients(name: str) -> None:
    logits, y = sample(3)
    loss = make_loss(name, label_smoothing=0.1)
    assert torch.autograd.gradcheck(lambda z: loss(z, y), logits.requires_grad_())


def test_a_loss_that_is_not_known() -> None:
    with pytest.raises(ArchirError) as caught:
        make_loss("hinge")
    (found,) = caught.value.diagnostics
    assert found.code == "A632"
    assert "cross_entropy, binary_cross_entropy, mse" in found.hint


# --- distillation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_by_hand(temperature: float) -> None:
    student, teacher = sample()[0], sample()[0].flip(1)
    log_p = special.log_softmax(teacher.numpy() / temperature, 1)
    log_q = special.log_softmax(student.numpy() / temperature, 1)
    wanted = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert abs(float(distillation(student, teacher, temperature)) - wanted) < BOUND


def test_a_students_gradient() -> None:
    student, teacher = sample()[0].requires_grad_(), sample()[0].flip(1).requires_grad_()
    distillation(student, teacher, 2.0).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert student.grad is not None
    soft = [special.softmax(z.detach().numpy() / 2, 1) for z in (student, teacher)]
    wanted = 2 * (soft[0] - soft[1]) / len(student)  # T^2 times 1/T (q - p)
    assert np.abs(student.grad.numpy() - wanted).max() < BOUND


def test_a_high_temperature_matches_logits() -> None:
    """Hinton et al. 2015, equation 4: the gradient becomes (z - v) / C of logits of mean zero."""
    student, teacher = (z - z.mean(1, keepdim=True) for z in (sample()[0], sample()[0].flip(1)))
    student.requires_grad_()
    distillation(student, teacher, 1e4).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    wanted = (student - teacher).detach() / student.numel()
    assert float((student.grad - wanted).abs().max() / wanted.abs().max()) < 1e-2


def test_nothing_to_learn_from_oneself() -> None:
    logits = sample()[0].requires_grad_()
    found = distillation(logits, logits, 3.0)
    assert abs(found.item()) < BOUND


# --- losses of the user's -------------------------------------------------------------------------


@pytest.fixture
def user(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file whose ``make`` returns what an expression says; gives the loss's name."""

    def write(expression: str, before: str = "") -> str:
        path = tmp_path / "mine.py"
        text = f"""
            import torch
            from torch.nn import functional

            def make():
                return {expression}
            """
        path.write_text(before + textwrap.dedent(text))
        return f"{path}:make"

    return write


def failure(act: Callable[[], object], code: str) -> str:
    with pytest.raises(ArchirError) as caught:
        act()
    (found,) = caught.value.diagnostics
    assert found.code == code
    assert caught.value.status == BAD_INPUT
    assert "\n" not in found.message
    return found.message


def test_a_users_function(user: Callable[[str], str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loss = make_loss(user("lambda logits, y: functional.multi_margin_loss(logits, y)"))
    assert "its code is not archir's" in caplog.text
    logits, y = sample()
    logits.requires_grad_()
    found = loss(logits, y)
    assert torch.equal(found, torch.nn.functional.multi_margin_loss(logits, y))
    found.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    with torch.inference_mode():  # as validation calls it
        assert torch.equal(loss(logits, y), found)


def test_a_users_module(user: Callable[[str], str]) -> None:
    weight = [1.0, 2.0, 3.0, 4.0, 5.0]
    loss = make_loss(user(f"torch.nn.CrossEntropyLoss(torch.tensor({weight}))"))
    logits, y = sample()
    wanted = torch.nn.functional.cross_entropy(logits.float(), y, torch.tensor(weight))
    for _ in range(2):
        assert torch.equal(loss(logits.float().requires_grad_(), y), wanted)


def test_a_users_loss_leaves_the_gradients_alone(user: Callable[[str], str]) -> None:
    loss = make_loss(user("functional.cross_entropy"))
    logits, y = sample()
    gradients = []
    for made in (loss, torch.nn.functional.cross_entropy):
        z = logits.clone().requires_grad_()
        made(z, y).backward()  # type: ignore[no-untyped-call]
        gradients.append(z.grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("lambda logits, y: logits.sum().item()", "returned float, not one number"),
        ("lambda logits, y: None", "returned NoneType"),
        ("lambda logits, y: logits.sum(1)", "returned float64[6]"),
        ("lambda logits, y: logits.sum().reshape(1)", "returned float64[1]"),
        ("lambda logits, y: y.sum()", "returned int64[]"),
        ("lambda logits, y: logits.detach().sum()", "has no gradient"),
        ("lambda logits, y: torch.zeros(()).requires_grad_()", "has no gradient"),
        ("lambda logits: logits.sum()", "failed with TypeError"),
        ("lambda logits, y: 1 / 0", "failed with ZeroDivisionError: division by zero"),
        ("lambda logits, y: logits @ logits", "failed with RuntimeError"),
        ("lambda logits, y: functional.mse_loss(logits, y[:2].double())", "failed with"),
    ],
)
def test_losses_that_do_not_work(user: Callable[[str], str], expression: str, said: str) -> None:
    loss = make_loss(user(expression))
    logits, y = sample()
    logits.requires_grad_()
    assert said in failure(lambda: loss(logits, y), "A673")


def test_an_error_of_many_lines_is_one(user: Callable[[str], str]) -> None:
    loss = make_loss(user("lambda logits, y: exec('raise ValueError(\"one\\\\ntwo\")')"))
    message = failure(lambda: loss(*sample()), "A673")
    assert "ValueError: one two" in message


@pytest.mark.parametrize("raised", ["torch.OutOfMemoryError", "KeyboardInterrupt"])
def test_what_is_not_the_losss_fault(user: Callable[[str], str], raised: str) -> None:
    loss = make_loss(user(f"lambda logits, y: (_ for _ in ()).throw({raised}())"))
    kind = {"KeyboardInterrupt": KeyboardInterrupt}.get(raised, torch.OutOfMemoryError)
    with pytest.raises(kind):
        loss(*sample())


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("7", "returned int, not a loss"),
        ("None", "returned NoneType"),
        ("torch.nn.NoSuchLoss()", "AttributeError"),
    ],
)
def test_factories_that_do_not_work(user: Callable[[str], str], expression: str, said: str) -> None:
    name = user(expression)
    assert said in failure(lambda: make_loss(name), "A672")


def test_files_that_do_not_work(user: Callable[[str], str], tmp_path: Path) -> None:
    name = user("functional.cross_entropy")
    path = name.removesuffix(":make")
    assert "no function `other`" in failure(lambda: make_loss(f"{path}:other"), "A672")
    assert "no Python file" in failure(lambda: make_loss(f"{tmp_path}/no.py:make"), "A672")
    Path(path).write_text("def make(:")
    assert "SyntaxError" in failure(lambda: make_loss(name), "A672")


def test_smoothing_is_not_for_a_loss_of_ones_own(user: Callable[[str], str]) -> None:
    name = user("functional.cross_entropy")
    message = failure(lambda: make_loss(name, label_smoothing=0.1), "A632")
    assert "label_smoothing" in message
