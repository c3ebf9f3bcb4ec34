"""The number of threads: as set, as the load allows, and what is fastest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import vivace
from vivace.config import settings
from vivace.errors import ArgumentTypeError, OptionError
from vivace.ops.runtime import threads as module
from vivace.ops.runtime.threads import (
    Pace,
    Tuner,
    adapted_threads,
    kernel_threads,
    on_one_thread,
)

SOURCE = Path(vivace.__file__).parents[1]


class Machine:
    """A clock, and units whose seconds depend on the number of threads."""

    def __init__(self, seconds):
        self.now, self.ran, self.seconds = 0.0, [], seconds

    def run(self, tuner, units, most):
        begun = self.now
        for _ in range(units):
            number = tuner.threads(most)
            self.ran.append(number)
            self.now += self.seconds[number]
            tuner.took(self.seconds[number], self.now)
        return self.now - begun


IDLE = {2: 0.003, 1: 0.005}
BUSY = {2: 0.170, 1: 0.005}  # as measured: a step of two threads beside a busy process


def test_all_threads_where_they_are_faster():
    machine = Machine(IDLE)
    machine.run(Tuner(), 1000, most=2)
    assert machine.ran.count(1) <= 4
    assert machine.ran[-1] == 2


def test_one_thread_where_several_are_slower():
    machine = Machine(BUSY)
    machine.run(Tuner(), 1000, most=2)
    assert machine.ran.count(2) <= 4
    assert machine.ran[-1] == 1


@pytest.mark.parametrize("best", [1, 2, 4, 8, 16])
def test_the_best_of_the_halves_is_found(best):
    seconds = {n: 0.01 * (1 + abs(np.log2(n / best))) for n in (1, 2, 4, 8, 16)}
    machine = Machine(seconds)
    machine.run(Tuner(), 50, most=16)
    assert machine.ran[-1] == best


def test_a_small_gain_is_ignored():
    """Measured times vary that much by chance."""
    machine = Machine({2: 0.010, 1: 0.0095})
    machine.run(Tuner(), 100, most=2)
    assert machine.ran[-1] == 2


def test_a_machine_that_becomes_busy_and_idle_again():
    machine, tuner = Machine(IDLE), Tuner()
    machine.run(tuner, 500, most=2)
    machine.seconds = BUSY
    machine.run(tuner, 100, most=2)
    assert machine.ran[-90:] == [1] * 90
    machine.seconds = IDLE
    machine.run(tuner, 3000, most=2)  # within fifty times what trying took
    assert machine.ran[-1] == 2


def test_a_long_run_on_a_busy_machine_is_never_much_longer_than_on_one_thread():
    """Even if only the time of the units shows that the machine is busy."""
    machine = Machine(BUSY)
    taken = machine.run(Tuner(), 20_000, most=2)
    assert taken < 1.2 * 20_000 * BUSY[1]


def test_long_units_are_tried_once_and_seldom_again():
    machine = Machine({2: 1.0, 1: 1.7})
    machine.run(Tuner(), 100, most=2)
    assert machine.ran.count(1) <= 2


def test_the_first_unit_is_not_judged():
    """It may load kernels."""
    machine, tuner = Machine({2: 5.0, 1: 0.005}), Tuner()
    machine.run(tuner, 1, most=2)
    machine.seconds = IDLE
    machine.run(tuner, 20, most=2)
    assert machine.ran[-1] == 2


def test_other_work_of_the_same_kind_keeps_what_was_chosen():
    machine, tuner = Machine(BUSY), Tuner()
    machine.run(tuner, 20, most=2)
    tuner.renew()
    machine.seconds = {2: 17.0, 1: 0.5}  # its units are longer
    machine.run(tuner, 3, most=2)
    assert machine.ran[-3:] == [1] * 3


@pytest.mark.parametrize(("most", "tried"), [(15, False), (13, False), (8, True), (1, True)])
def test_another_number_of_free_cores_is_tried_if_it_differs_much(most, tried):
    machine, tuner = Machine({n: 0.01 * n for n in range(1, 17)}), Tuner()
    machine.run(tuner, 60, most=16)
    assert machine.ran[-1] == 1
    machine.run(tuner, 1, most=most)
    assert machine.ran[-1] == (most if tried else 1)


def test_never_more_threads_than_may_run():
    rng = np.random.default_rng(0)
    tuner, now = Tuner(), 0.0
    for _ in range(5000):
        most = int(rng.integers(1, 20))
        assert 1 <= tuner.threads(most) <= most
        now += (took := float(rng.exponential(0.02)))
        tuner.took(took, now)


# ---- scopes -------------------------------------------------------------------


@pytest.fixture
def torch_threads():
    """Three torch threads on three allowed cores; both are restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    settings.num_threads = None
    torch.set_num_threads(before)


@pytest.fixture
def free(monkeypatch, torch_threads):
    """Sets the number of free cores that is seen."""
    monkeypatch.setattr(module, "allowed_cores", lambda: 3)
    seen = {"cores": 3.0}
    monkeypatch.setattr(module._cores, "look", lambda: seen["cores"])
    monkeypatch.setattr(module, "_tuners", {})
    return lambda cores: seen.update(cores=cores)


def run_units(pace, number=1):
    for _ in range(number):
        pace.begin()
        pace.end()


@pytest.mark.parametrize(
    ("cores", "expected"), [(3.0, 3), (2.75, 3), (2.65, 2), (1.0, 1), (0.2, 1), (9.0, 3), (None, 3)]
)
def test_as_many_threads_as_free_cores(cores, expected, free):
    free(cores)
    with adapted_threads():
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 3


def test_units_follow_the_load(free):
    with adapted_threads():
        pace = Pace("units")
        ran = []
        for cores in (3.0, 1.1, 1.0, 2.0, 3.0):
            free(cores)
            run_units(pace)
            ran.append(torch.get_num_threads())
    assert ran == [3, 1, 1, 2, 3]
    assert torch.get_num_threads() == 3


def test_the_previous_number_is_restored_after_an_error(free):
    free(1.0)
    with pytest.raises(ZeroDivisionError), adapted_threads():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3
    with adapted_threads(), adapted_threads():
        pass
    assert torch.get_num_threads() == 3


def test_one_scope_inside_another_does_nothing(free):
    free(1.0)
    with adapted_threads():
        free(3.0)
        with adapted_threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        assert kernel_threads() == (1, True)
    assert kernel_threads() == (3, True)


def test_a_number_that_is_set_is_used_as_it_is(free):
    free(1.0)
    settings.num_threads = 2
    with adapted_threads():
        run_units(Pace("units"), 10)
        assert torch.get_num_threads() == settings.num_threads == 2
    settings.num_threads = None
    assert settings.num_threads == torch.get_num_threads() == 3  # as before it was set
    with adapted_threads():
        assert torch.get_num_threads() == 1


def test_a_number_that_is_set_while_a_model_works_is_used_at_once(free):
    free(1.0)
    with adapted_threads():
        pace = Pace("units")
        run_units(pace)
        settings.num_threads = 2
        run_units(pace)
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2
    settings.num_threads = None
    assert torch.get_num_threads() == 3


def test_a_unit_with_other_units_inside_has_its_number_again(free):
    with adapted_threads():
        outer = Pace("outer")
        run_units(outer, 2)
        chosen = torch.get_num_threads()
        torch.set_num_threads(1)  # as an inner pace may have left it
        outer.begin()
        assert torch.get_num_threads() == chosen > 1


def test_a_generator_that_outlives_its_scope_leaves_torch_alone(free):
    free(1.0)
    with adapted_threads():
        pace = Pace("units")
        run_units(pace)
    run_units(pace)
    assert torch.get_num_threads() == 3


def test_torch_s_own_number_is_the_most(free):
    torch.set_num_threads(2)
    with adapted_threads():
        run_units(Pace("units"))
        assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with adapted_threads():
        assert kernel_threads() == (1, False)


def test_no_more_threads_than_allowed_cores(free, monkeypatch):
    monkeypatch.setattr(module, "allowed_cores", lambda: 2)
    with adapted_threads():
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("number", "error"),
    [(0, OptionError), (-1, OptionError), ("2", ArgumentTypeError), (True, ArgumentTypeError)],
)
def test_a_wrong_number_of_threads_is_refused(number, error, refused):
    with refused(error, "settings.num_threads"):
        settings.num_threads = number


def test_each_python_thread_has_its_own_scope(free):
    free(1.0)
    inside = []
    with adapted_threads():
        other = threading.Thread(target=lambda: inside.append(module._scope.ceiling))
        other.start()
        other.join()
    assert inside == [0]


def test_on_one_thread_restores_the_number(torch_threads):
    with on_one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


# ---- whole processes ----------------------------------------------------------


def run(program, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=inherited | {"PYTHONPATH": str(SOURCE)} | environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


RUNS = """
import torch, vivace
from vivace.ops.runtime.threads import adapted_threads, kernel_threads
{before}
with adapted_threads():
    print(torch.get_num_threads(), kernel_threads()[1])
"""


@pytest.mark.parametrize(
    ("before", "environment", "expected"),
    [
        ("", {"OMP_NUM_THREADS": "1"}, ["1", "False"]),
        ("", {"MKL_NUM_THREADS": "1"}, ["1", "False"]),
        ("torch.set_num_threads(1)", {}, ["1", "False"]),
        ("vivace.settings.num_threads = 1", {"OMP_NUM_THREADS": "2"}, ["1", "False"]),
        ("vivace.settings.num_threads = 2", {"OMP_NUM_THREADS": "1"}, ["2", "True"]),
    ],
)
def test_settings_take_precedence_over_the_environment(before, environment, expected):
    assert run(RUNS.format(before=before), **environment) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_forked_while_a_model_works_has_one_thread():
    program = (
        "import os, warnings, torch, vivace\n"
        "from vivace.ops.runtime.threads import Pace, adapted_threads\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "vivace.settings.num_threads = 2\n"
        "torch.ones(999, 999) @ torch.ones(999, 999)\n"
        "with adapted_threads():\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        with adapted_threads():\n"
        "            pace = Pace('units'); pace.begin(); pace.end()\n"
        "            torch.ones(999, 999) @ torch.ones(999, 999)\n"
        "            os._exit(0 if torch.get_num_threads() == 1 else 1)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    run(program)
