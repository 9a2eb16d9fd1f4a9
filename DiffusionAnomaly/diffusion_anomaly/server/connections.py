"""One connection: how long its requests may take to begin and its answers to be read, and how many an address has."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Any

from .limits import Limits, Pace
from .tokens import User

# Bytes of an answer that wait here for a slow reader, or its connection would end with much of it unread.
_MOST_WAITING, _FEW_WAITING = 1 << 16, 1 << 14


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol of a connection, with a time for requests to begin and for answers to be read, and so many
    connections an address.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol  # type: ignore[import-not-found]

    addresses: Counter[str] = Counter()

    class Bounded(H11Protocol):  # type: ignore[misc, valid-type]
        _deadline: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None
        _address = ""
        _unread = 0  # bytes of an answer, when it was last too much of it

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
            self._met()
            self._is_read()
            super().connection_lost(error)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._met()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:  # else the next request was there already
                self._expect_request()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._pace.waits()
            self._unread = self.transport.get_write_buffer_size()
            late = self._pace.left + self._unread / limits.least_rate
            self._reading = self.loop.call_later(late, self._too_slow)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._pace.goes_on(self._unread - self.transport.get_write_buffer_size())
            self._is_read()

        def _is_read(self) -> None:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def _expect_request(self) -> None:
            self._met()
            self._deadline = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _met(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

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
