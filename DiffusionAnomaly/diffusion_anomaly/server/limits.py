"""Every bound of the server in one place, and what counts against them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What nobody gets beyond.

    Attributes:
        order_bytes: of the JSON that orders a job.
        job_bytes: voxels of one job.
        jobs_a_user: that wait, run, or lie there undelivered.
        jobs: of everybody.
        requests_a_second, burst: of one user, on average and at once.
        streams_a_user: requests of one user at the same time.
        connections: of everybody at the same time.
        connections_an_address: of one address at the same time.
        refusals_a_minute: of one address, after which it is told to wait.
        header_seconds: for the request line and the headers.
        stall_seconds: between two pieces of a body, and in which nothing of an answer is taken.
        least_rate: bytes a second of a body and of an answer, after ``stall_seconds`` of grace.
        upload_seconds: from the order to the last voxel.
        job_seconds: of a detection.
        keep_seconds: that results which nobody takes are kept.
        heartbeat_seconds: between two words of an event stream.
        reserve_bytes: of the disk that stay free.
    """

    order_bytes: int = 1 << 16
    job_bytes: int = 2 << 30
    jobs_a_user: int = 20
    jobs: int = 200
    requests_a_second: float = 20.0
    burst: int = 100
    streams_a_user: int = 64
    connections: int = 512
    connections_an_address: int = 128
    refusals_a_minute: int = 30
    header_seconds: float = 10.0
    stall_seconds: float = 20.0
    least_rate: float = 50_000.0
    upload_seconds: float = 1800.0
    job_seconds: float = 3600.0
    keep_seconds: float = 900.0
    heartbeat_seconds: float = 10.0
    reserve_bytes: int = 500_000_000


class Pace:
    """How long the other end may still keep us waiting: some grace, and time for every byte that went over.

    Time in which we are the slower one does not count, and more than the grace is never saved up.

    >>> now = 0.0
    >>> pace = Pace(20.0, 1000.0, clock=lambda: now)
    >>> pace.waits(); now = 15.0; pace.goes_on(1000); pace.left
    6.0
    >>> now = 100.0; pace.waits(); now = 103.0; pace.goes_on(0); pace.left
    3.0

    Args:
        grace: seconds.
        rate: bytes a second that are fast enough.
    """

    def __init__(self, grace: float, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace, self._rate, self._clock = grace, rate, clock
        self._since = clock()
        self.left = grace

    def waits(self) -> None:
        """From now on we wait for the other end."""
        self._since = self._clock()

    def goes_on(self, count: int) -> None:
        """It has taken, or sent, so many bytes."""
        waited = self._clock() - self._since
        self.left = max(0.0, min(self._grace, self.left - waited + count / self._rate))


class Buckets:
    """How much everybody has left: so much a second, and no more than ``burst`` saved up.

    >>> buckets = Buckets(1.0, 2, clock=lambda: 0.0)
    >>> [buckets.take("anna") for _ in range(3)], buckets.take("ben")
    ([True, True, False], True)
    """

    MOST = 10_000  # that are remembered; one that is full again says nothing

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, who: str) -> bool:
        """Take one; False when there is none."""
        now = self._clock()
        if len(self._left) >= self.MOST and who not in self._left:
            self._left = {name: left for name, left in self._left.items() if self._now(left, now) < self._burst}
            if len(self._left) >= self.MOST:
                return False
        left = self._now(self._left.get(who, (self._burst, now)), now)
        self._left[who] = (max(0.0, left - 1), now)
        return left >= 1

    def _now(self, saved: tuple[float, float], now: float) -> float:
        left, at = saved
        return min(self._burst, left + (now - at) * self._rate)
