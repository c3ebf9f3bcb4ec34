"""The ``Cells`` that a question receives."""

from __future__ import annotations

import pytest
import torch

from vivace.cells import question
from vivace.errors import OptionError
from vivace.ops.runtime import threads
from vivace.validate import Int


def test_a_question_is_checked_has_no_gradients_and_follows_the_load(monkeypatch, refused):
    monkeypatch.setattr(threads, "allowed_cores", lambda: 3)
    monkeypatch.setattr(threads._cores, "look", lambda: 1.0)
    before = torch.get_num_threads()
    x = torch.ones(1, requires_grad=True)

    @question(number=Int())
    def ask(number):
        """What it is."""
        return (number * x).requires_grad, torch.get_num_threads()

    torch.set_num_threads(3)
    try:
        assert ask(2) == (False, 1)
        assert ask.__doc__ == "What it is."
        with refused(OptionError, "number"):
            ask(0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert (2 * x).requires_grad


def test_an_error_in_a_question_restores_gradients_and_threads():
    before = torch.get_num_threads()

    @question()
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == before
