"""Warnings point at the user's line; values and names in messages stay short."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import vivace
from vivace.errors import (
    MissingExtraError,
    VivaceError,
    VivaceWarning,
    brief,
    list_names,
    near,
    one_line,
    require_extra,
    warn,
)


def all_subclasses(kind: type[VivaceError]) -> list[type[VivaceError]]:
    return [c for child in kind.__subclasses__() for c in (child, *all_subclasses(child))]


def test_a_warning_points_at_a_script_in_a_folder_beside_the_package():
    package = Path(vivace.__file__).parent
    script = f"{package}_scripts/run.py"
    inside = compile("def call(): warn('careful')", str(package / "inside.py"), "exec")
    space = {"warn": warn}
    exec(inside, space)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile("\ncall()", script, "exec"), space)
    assert [(w.filename, w.lineno) for w in caught] == [(script, 2)]


@pytest.mark.parametrize(
    "value",
    [np.zeros((50, 50)), pd.DataFrame({"a": range(9)}), list(range(999)), "z" * 999, {"a": "b"}],
    ids=type,
)
def test_a_value_in_a_message_is_one_short_line(value):
    text = brief(value)
    assert "\n" not in text
    assert len(text) <= 60
    if isinstance(value, np.ndarray | pd.DataFrame):
        kinds = {np.ndarray: "an ndarray", pd.DataFrame: "a DataFrame"}
        assert text == f"{kinds[type(value)]} of shape {value.shape}"
    else:
        assert text[-1] == repr(value)[-1]


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_that_cannot_be_shown():
    assert brief(Broken()) == "<Broken>"
    assert brief(10**5000) == "a number of thousands of digits"


def test_a_long_text_is_shortened_before_it_is_read():
    text = "a" * 10**8 + "\n" + "b" * 10**8
    assert brief(text) == "'" + 37 * "a" + "..." + 18 * "b" + "'"
    assert one_line(text, 20) == 12 * "a" + "..." + 5 * "b"
    assert near(text, ["batch", text[: 10**6]]).startswith("available: 'aaa")
    assert len(near("a" * 299, ["a" * 300, "b"])) < 80


@pytest.mark.parametrize("kind", [VivaceError, *all_subclasses(VivaceError)])
def test_every_message_is_one_line_of_bounded_length(kind):
    """Whatever a caller puts into it."""
    error = kind("It holds\n" + "x" * 10**6 + "; fix it.")
    assert str(error).startswith("It holds xxx")
    assert str(error).endswith("xxx; fix it.")
    assert len(str(error)) == 600
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(kind("short  text")) == "short  text"
    with pytest.warns(VivaceWarning) as caught:
        warn("It holds\n" + "x" * 10**6)
    assert len(str(caught[0].message)) == 600


def test_spaces_of_a_string_are_kept():
    assert brief("a   b") == "'a   b'"


def test_names_are_listed_up_to_a_number():
    assert list_names("abcde") == "'a', 'b', 'c', 'd', 'e'"
    assert list_names("abcdef") == "'a', 'b', 'c', 'd', 'e', ..."
    assert list_names((1, 2, 3), most=2, form=str) == "1, 2, ..."
    assert near("x", ["batch"]) == "available: 'batch'."


@pytest.mark.parametrize(
    ("alternative", "end"), [("", "'vivace[de]'."), ("or do x", "'vivace[de]', or do x.")]
)
def test_a_missing_extra(refused, monkeypatch, alternative, end):
    require_extra("numpy", "de", "This needs")
    monkeypatch.setattr("vivace.errors.find_spec", lambda name: None)
    said = f"This needs scikit-learn, which is not installed; run pip install {end}"
    with refused(MissingExtraError, said):
        require_extra("sklearn", "de", "This needs", alternative)


def test_of_another_library_only_the_first_sentence_is_shown():
    assert one_line(ValueError("Error tokenizing. C error: 5")) == "Error tokenizing"
    assert one_line(ValueError("It is 2.5 e.g. here.")) == "It is 2.5 e.g. here"
    assert one_line("A text. It stays.") == "A text. It stays."
