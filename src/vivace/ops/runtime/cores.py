"""Which cores this process may use, and which of them are free."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_COUNTED = 0.5  # of a core's time that must have been counted, as idle or as anything else
_SHORTEST = 0.1  # seconds: processor times are counted in hundredths


def allowed_cores() -> int:
    """Cores that this process may use: of its affinity mask, and within its cgroup's quota.

    A quota that is not whole is rounded; at least 1.
    """
    cores = len(_affinity() or ()) or os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, round(quota)))


def _affinity() -> set[int] | None:
    """Numbers of the cores this process may run on; None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return None
    return os.sched_getaffinity(0)


def _quota(root: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float | None:
    """Cores' worth of time that this process's cgroups grant; None for no limit.

    Every group up to the root counts.  Inside a container, where the path of the group is the
    host's and not there, the root of the mount is the container's own group.
    """
    try:
        lines = own.read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux, or nothing that it writes
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
            above = [p for p in group.parents if p.is_relative_to(mount)]
            quotas += [read(folder) for folder in (group, *above)]
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
    """Seconds since some start.

    By the clock, idle and in all over the allowed cores, used by this process.
    """

    clock: float
    idle: float
    total: float
    own: float


class FreeCores:
    """Cores that no other process uses, from what was idle between two readings.

    A core that this process uses counts as free, one that waits for a disk too.
    """

    def __init__(self) -> None:
        self._last = _read()
        self._free: float | None = None

    def look(self) -> float | None:
        """Mean number of free cores between the last two readings, a tenth of a second or more apart.

        Reads anew where the last reading is older than that.  None where there are no
        two yet, or the system does not say.
        """
        last = self._last
        if last is None or time.perf_counter() - last.clock < _SHORTEST:
            return self._free
        now = _read()
        if now is not None:
            self._last, seconds = now, now.clock - last.clock
            free = (now.idle - last.idle + now.own - last.own) / seconds
            # some sandboxes have counters that stand still
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
