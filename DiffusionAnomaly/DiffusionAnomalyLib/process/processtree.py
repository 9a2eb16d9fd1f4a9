"""Ending a process together with everything it has started.

``PythonSlicer`` is a launcher: the Python that works is its child. Killing the launcher alone leaves that child behind
with the GPU's memory in its hands, so the whole tree has to go.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path


def killTree(pid: int) -> None:
    """End a process and all of its descendants at once. Those that have ended already are no error."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False)
        return
    # Stopped first and from the top, so that none of them starts another while the list is walked.
    tree = [pid]
    for member in tree:
        _send(member, signal.SIGSTOP)
        tree.extend(_children().get(member, []))
    for member in reversed(tree):
        _send(member, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The children of a process, their children and so on; parents come before their children. Not on Windows."""
    children = _children()
    found = list(children.get(pid, []))
    for member in found:
        found.extend(children.get(member, []))
    return found


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, number)


def _children() -> dict[int, list[int]]:
    """Children of every process, by the parent's id."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent in _fromProc() if Path("/proc/self/stat").exists() else _fromPs():
        children[parent].append(pid)
    return children


def _fromProc() -> list[tuple[int, int]]:
    pairs = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            # The name in parentheses may hold blanks and parentheses itself; the parent is the second field after it.
            parent = status.read_text(errors="replace").rpartition(")")[2].split()[1]
            pairs.append((int(status.parent.name), int(parent)))
    return pairs


def _fromPs() -> list[tuple[int, int]]:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [(int(row[0]), int(row[1])) for row in rows if len(row) == 2]
