"""One connection: how long its requests may take to begin and its answers to be read, and how many an address has."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Any

from .limits import Limits, Pace
from .tokens import User

# Bytes of an answer: sending pauses while more than the first wait here for their reader, and goes on at the second. A
# connection that is closed after its answer has 3 seconds (_SHUTDOWN_SECONDS of listening.py) for what still waits. At
# the least rate, 50 kB a second, 64 KiB take 1.3; the 512 KiB that asyncio lets wait over TLS would take 10, and be cut
# off. The second is a quarter of the first, as in asyncio.
_MOST_WAITING, _FEW_WAITING = 1 << 16, 1 << 14


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol of a connection, with a time for requests to begin and for answers to be read, and so many
    connections an address.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol  # type: ignore[import-not-found]

    addresses: Counter[str] = Counter()

    class Bounded(H11Protocol):  # type: ignore[misc, valid-type]
        _request_deadline: asyncio.TimerHandle | None = None
        _read_deadline: asyncio.TimerHandle | None = None
        _address = ""
        _unread = 0  # bytes of an answer that waited for their reader when sending was last paused

        @property
        def user(self) -> User | None:
            """Whose the request is that came last."""
            return (self.scope or {}).get("state", {}).get("user")

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._pace = Pace(limits.stall_seconds, limits.least_rate, self.loop.time)
            _keep_little(transport)
            self._address = str((self.client or ("", 0))[0])
            addresses[self._address] += 1
            if addresses[self._address] > limits.connections_an_address:
                transport.abort()
                return
            self._expect_request()

        def connection_lost(self, error: Exception | None) -> None:
            addresses[self._address] -= 1
            if addresses[self._address] <= 0:
                del addresses[self._address]
            self._cancel_request_deadline()
            self._cancel_read_deadline()
            super().connection_lost(error)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._cancel_request_deadline()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:  # else the next request was there already
                self._expect_request()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._pace.waits()
            self._unread = self.transport.get_write_buffer_size()
            late = self._pace.left + self._unread / limits.least_rate
            self._read_deadline = self.loop.call_later(late, self._too_slow)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._pace.goes_on(self._unread - self.transport.get_write_buffer_size())
            self._cancel_read_deadline()

        def _cancel_read_deadline(self) -> None:
            if self._read_deadline is not None:
                self._read_deadline.cancel()
                self._read_deadline = None

        def _expect_request(self) -> None:
            self._cancel_request_deadline()
            self._request_deadline = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _cancel_request_deadline(self) -> None:
            if self._request_deadline is not None:
                self._request_deadline.cancel()
                self._request_deadline = None

        def _too_slow(self) -> None:
            with contextlib.suppress(OSError):
                self.transport.abort()

    return Bounded


def _keep_little(transport: Any) -> None:
    """Have little of an answer wait for its reader, here and in the operating system."""
    transport.set_write_buffer_limits(_MOST_WAITING, _FEW_WAITING)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):  # it is gone already
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * _MOST_WAITING
            )
