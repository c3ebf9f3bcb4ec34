"""Compilation is announced, counted and timed; loading from the cache is not."""

from __future__ import annotations

import time

import numba
import pytest

from vivace.ops.runtime.compilation import Compilation


def test_it_begins_and_ends_once_for_each_call_from_outside():
    said = []
    inner = numba.njit(lambda x: x + 1)
    outer = numba.njit(lambda x: inner(x) + inner(x))
    with Compilation(lambda: said.append("begins"), lambda: said.append("ends")) as compilation:
        assert outer(1) == 4
        assert said == ["begins", "ends"]
        assert outer(2) == 6
        assert said == ["begins", "ends"]
        assert compilation.kernels == 2  # the inner one too
        assert inner(1.5) == 2.5  # another type
    assert said == ["begins", "ends"] * 2
    numba.njit(lambda: 1)()
    assert compilation.kernels == 3


def test_its_seconds_are_those_of_compilation_alone():
    seen = []
    function = numba.njit(lambda x: x + 1)

    def begins():
        time.sleep(0.05)
        assert compilation.running
        seen.append(compilation.seconds)

    begun = time.perf_counter()
    with Compilation(begins) as compilation:
        time.sleep(0.2)
        function(1)
        compiled = compilation.seconds
        time.sleep(0.2)
        function(2)
    assert not compilation.running
    assert 0.05 <= seen[0] < compiled == compilation.seconds
    assert compiled <= time.perf_counter() - begun - 0.4


def test_what_cannot_be_compiled_has_ended_too():
    with Compilation() as compilation:
        with pytest.raises(numba.TypingError):
            numba.njit(lambda: unknown)()  # noqa: F821
        assert not compilation.running
