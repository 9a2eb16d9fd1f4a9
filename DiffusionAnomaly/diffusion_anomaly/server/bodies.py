"""Bodies of requests as they come: neither longer nor slower than they may be, and voxels straight onto the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ..text import printable
from .jobs import Job
from .limits import Limits, Pace
from .refusals import Refusal
from .spool import VoxelFile

if TYPE_CHECKING:
    from starlette.requests import Request  # type: ignore[import-not-found]

_BLOCK = 1 << 20  # bytes of a body that go to the disk at a time


async def small_body(request: Request, limits: Limits) -> bytes:
    """A body that is read whole.

    Raises:
        Refusal: when it is too long or too slow.
    """
    body = bytearray()
    async for piece in _pieces(request, limits, limits.order_bytes):
        body += piece
    return bytes(body)


async def receive_voxels(request: Request, job: Job, index: int, limits: Limits) -> None:
    """An input's voxels onto the disk, a block at a time, in a thread.

    Raises:
        Refusal: when the body is too long, too slow, or in an encoding that is not known.
        WrongBody: when it is not what the order promised.
        OSError: when the disk refuses.
    """
    header = job.order.inputs[index]
    encoding = request.headers.get("content-encoding", "identity")
    if encoding not in ("identity", "gzip"):
        raise Refusal(415, "bad_input", f"The encoding {printable(encoding)[:40]} is not known.", "Use gzip or none.")
    file = await asyncio.to_thread(VoxelFile, job.input_path(index), header, encoding == "gzip")
    try:
        block = bytearray()
        # What does not shrink grows by a little under gzip.
        async for piece in _pieces(request, limits, header.bytes + header.bytes // 100 + 1024):
            block += piece
            if len(block) >= _BLOCK:
                await asyncio.to_thread(file.write, bytes(block))
                block.clear()
        await asyncio.to_thread(file.write, bytes(block))
        await asyncio.to_thread(file.finish)
    finally:
        await asyncio.to_thread(file.discard)


async def _pieces(request: Request, limits: Limits, most: int) -> AsyncIterator[bytes]:
    """A request's body as it comes.

    Args:
        request: whose body is still to come.
        limits: how slow it may be.
        most: bytes that it may have.

    Raises:
        Refusal: when it is, or says that it will be, longer than that, and when it comes too slowly.
        ClientDisconnect: of Starlette, when the connection ends before the body does.
    """
    stated = request.headers.get("content-length", "")
    too_large = Refusal(413, "too_large", f"The body is larger than {most} bytes.")
    if stated.isdigit() and int(stated[:19]) > most:
        raise too_large
    pace, came = Pace(limits.stall_seconds, limits.least_rate), 0
    stream = request.stream().__aiter__()
    while True:
        pace.waits()
        try:
            piece = await asyncio.wait_for(stream.__anext__(), pace.left)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise Refusal(408, "too_slow", "The body comes too slowly.", "Try again.") from None
        pace.goes_on(len(piece))
        came += len(piece)
        if came > most:
            raise too_large
        yield piece
