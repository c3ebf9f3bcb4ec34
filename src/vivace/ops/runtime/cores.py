"""Which cores this process may use, and which of them are free."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_COUNTED = 0.5  # cores' worth of time that the counters must have counted, idle or not
_SHORTEST = 0.1  # seconds between readings; the counters have a resolution of 0.01


def allowed_cores() -> int:
    """Count the cores that this process may use, at least 1.

    The affinity mask and the cgroup's quota limit them. A quota that is not whole is rounded.
    """
    cores = len(_affinity() or ()) or os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, round(quota)))


def _affinity() -> set[int] | None:
    """Numbers of the cores this process may run on; None where the system has no such mask."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return None
    return os.sched_getaffinity(0)


def _quota(root: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float | None:
    """Cores' worth of time that this process's cgroups grant; None for no limit.

    Every group up to the root counts. Inside a container the path of the group is the
    host's and may not exist; there the root of the mount is the container's own group.
    """
    try:
        lines = own.read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux, or not text
        return None
    quotas = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "", "")[:3]
        if path == "":
            continue
        if controllers == "":
            mounts, read = [root, root / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = [root / "cpu", root / "cpu,cpuacct"], _quota_v1
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            parents = [p for p in group.parents if p.is_relative_to(mount)]
            quotas += [read(folder) for folder in (group, *parents)]
    return min((q for q in quotas if q is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return None if limit < 0 else limit / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class _Reading:
    """Counters in seconds; only their differences are meaningful."""

    clock: float
    idle: float  # of the allowed cores together
    total: float  # the same, idle or not
    own: float  # used by this process


class FreeCores:
    """Measures how many cores no other process uses.

    Cores that this process uses count as free, and so do cores that wait for a disk.
    """

    def __init__(self) -> None:
        self._last = _read()
        self._free: float | None = None

    def look(self) -> float | None:
        """Mean number of free cores between the last two readings.

        Takes a new reading if the last is at least a tenth of a second old. None before the
        second reading, or if the system has no counters.
        """
        last = self._last
        if last is None or time.perf_counter() - last.clock < _SHORTEST:
            return self._free
        now = _read()
        if now is not None:
            self._last, seconds = now, now.clock - last.clock
            free = (now.idle - last.idle + now.own - last.own) / seconds
            # in some sandboxes the counters stand still
            self._free = free if now.total - last.total > _COUNTED * seconds else None
        return self._free


def _read() -> _Reading | None:
    try:
        cores = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError, NotImplementedError, ValueError, IndexError):
        return None  # a sandbox that hides /proc/stat
    mask = _affinity()
    if mask is not None and max(mask) < len(cores):
        cores = [cores[i] for i in sorted(mask)]
    idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in cores)
    total = sum(sum(core) for core in cores)
    return _Reading(time.perf_counter(), idle, total, time.process_time())
