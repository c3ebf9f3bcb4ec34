"""Which cores a process may use, and which are free."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest

from vivace.ops.runtime import cores
from vivace.ops.runtime.cores import FreeCores, allowed_cores


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


V1 = "4:memory:/jobs\n2:cpu,cpuacct:/jobs/7\n"
V2 = "0::/user/job\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {}, None),
        (V2, {"user/job": {"cpu__max": "max 100000\n"}}, None),
        (V2, {"user/job": {"cpu__max": "150000 100000\n"}}, 1.5),
        (V2, {"user": {"cpu__max": "50000 100000\n"}, "user/job": {"cpu__max": "max 1\n"}}, 0.5),
        (V2, {".": {"cpu__max": "200000 100000\n"}}, 2.0),  # a container's own group
        (V2, {"unified/user/job": {"cpu__max": "300000 100000\n"}}, 3.0),
        (V2, {"user/job": {"cpu__max": "damaged"}}, None),
        (V2, {"user/job": {"cpu__max": "1 0"}}, None),
        ("garbage\n\n" + V2, {"user/job": {"cpu__max": "150000 100000\n"}}, 1.5),
        (V1, {"cpu/jobs/7": {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}}, None),
        (V1, {"cpu/jobs/7": {"cpu__cfs_quota_us": "250000", "cpu__cfs_period_us": "100000"}}, 2.5),
        (V1, {"cpu/jobs": {"cpu__cfs_quota_us": "100000", "cpu__cfs_period_us": "100000"}}, 1.0),
        (
            V1,
            {"cpu,cpuacct/jobs/7": {"cpu__cfs_quota_us": "4", "cpu__cfs_period_us": "1"}},
            4.0,
        ),
        (V1, {"cpu/jobs/7": {"cpu__cfs_quota_us": "9", "cpu__cfs_period_us": "0"}}, None),
        (V1, {"memory/jobs": {"cpu__cfs_quota_us": "9", "cpu__cfs_period_us": "9"}}, None),
    ],
)
def test_the_quota_is_the_least_of_the_group_and_those_above(own, files, expected, tmp_path):
    for folder, contents in files.items():
        write(tmp_path / "cgroup" / folder, **contents)
    # a limit outside the mount is nobody's
    write(tmp_path, cpu__max="1 1", cpu__cfs_quota_us="1", cpu__cfs_period_us="1")
    write(tmp_path / "self", cgroup=own)
    result = cores._quota(tmp_path / "cgroup", tmp_path / "self" / "cgroup")
    assert result == expected


def test_no_quota_where_the_groups_cannot_be_read(tmp_path):
    (tmp_path / "own").write_bytes(b"0::/\xff\xfe\n")
    assert cores._quota(tmp_path, tmp_path / "own") is None


def test_no_quota_where_there_are_no_groups(tmp_path):
    assert cores._quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("mask", "quota", "expected"),
    [
        ({0, 1, 2, 3}, None, 4),
        ({2}, None, 1),
        ({0, 1, 2, 3}, 2.0, 2),
        ({0, 1, 2, 3}, 2.6, 3),
        ({0, 1}, 16.0, 2),
        ({0, 1}, 0.3, 1),
        (None, None, 6),  # macOS, Windows
        (None, 2.0, 2),
    ],
)
def test_allowed_cores_are_limited_by_mask_and_quota(mask, quota, expected, monkeypatch):
    monkeypatch.setattr(cores, "_affinity", lambda: mask)
    monkeypatch.setattr(cores, "_quota", lambda: quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert allowed_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_mask_limits_the_cores():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from vivace.ops.runtime.cores import allowed_cores; print(allowed_cores())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


class Times(NamedTuple):
    user: float
    idle: float
    iowait: float


@pytest.fixture
def machine(monkeypatch):
    """A fake clock, process time and idle time of four cores, set by the test."""
    made = SimpleNamespace(clock=100.0, own=5.0, idle=[10.0, 20.0, 30.0, 40.0], mask={0, 1, 2, 3})
    monkeypatch.setattr(cores.time, "perf_counter", lambda: made.clock)
    monkeypatch.setattr(cores.time, "process_time", lambda: made.own)
    monkeypatch.setattr(cores, "_affinity", lambda: made.mask)
    monkeypatch.setattr(
        psutil, "cpu_times", lambda percpu: [Times(made.clock - i, i, 1.0) for i in made.idle]
    )
    return made


def test_what_is_idle_or_used_by_this_process_is_free(machine):
    free = FreeCores()
    assert free.look() is None  # nothing to compare with yet
    machine.clock += 0.5
    machine.own += 0.5  # one core is ours, two are idle, one is somebody's
    machine.idle = [10.5, 20.5, 30.0, 40.0]
    assert free.look() == pytest.approx(3.0)
    machine.clock += 0.05
    machine.own += 7.0
    assert free.look() == pytest.approx(3.0)  # too soon to tell
    machine.clock += 0.95
    machine.own -= 6.0
    assert free.look() == pytest.approx(1.0)


def test_cores_outside_the_mask_do_not_count(machine):
    machine.mask = {1, 2}
    free = FreeCores()
    machine.clock += 1.0
    machine.idle = [11.0, 20.25, 30.5, 41.0]
    assert free.look() == pytest.approx(0.75)


def test_a_mask_of_cores_that_are_not_listed_means_all(machine):
    machine.mask = {2, 9}
    free = FreeCores()
    machine.clock += 1.0
    machine.idle = [11.0, 21.0, 30.0, 40.0]
    assert free.look() == pytest.approx(2.0)


def test_counters_that_stand_still_give_no_answer(machine, monkeypatch):
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [Times(0.0, 0.0, 0.0)] * 4)
    free = FreeCores()
    machine.clock += 1.0
    machine.own += 0.9
    assert free.look() is None


@pytest.mark.parametrize("error", [OSError, RuntimeError, NotImplementedError, ValueError])
def test_free_cores_are_unknown_without_cpu_times(error, machine, monkeypatch):
    def hidden(percpu):
        raise error

    monkeypatch.setattr(psutil, "cpu_times", hidden)
    free = FreeCores()
    machine.clock += 1.0
    assert free.look() is None


def test_a_system_that_stops_reporting_is_remembered(machine, monkeypatch):
    free = FreeCores()
    machine.clock += 1.0
    machine.idle = [11.0, 21.0, 30.0, 40.0]
    assert free.look() == pytest.approx(2.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [][0])
    machine.clock += 1.0
    assert free.look() == pytest.approx(2.0)


def test_free_cores_of_this_machine_are_a_number():
    free = FreeCores()
    until = time.perf_counter() + 0.3
    while time.perf_counter() < until:
        pass
    result = free.look()
    assert result is None or 0.0 < result < 1.3 * len(os.sched_getaffinity(0)) + 0.5
