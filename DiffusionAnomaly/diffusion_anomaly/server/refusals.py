"""Answers that refuse: what a client is told, and the HTTP status that goes with it."""

from __future__ import annotations

from typing import Any

from ..errors import NO_SPACE, DiskFull, EngineError


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """A request that is answered with an error. One is made anew each time, since raising it gives it a traceback.

    Args:
        status: of HTTP.
        code, what, hint: as in the event ``error``.
    """

    def __init__(self, status: int, code: str, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.status, self.code, self.what, self.hint = status, code, what, hint

    @classmethod
    def of(cls, error: EngineError) -> Refusal:
        """What an error of the engine is answered with."""
        return cls(422, error.code, error.what, error.hint)

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"code": self.code, "what": self.what, "hint": self.hint}}


def not_found() -> Refusal:
    """There is no such path, method, job, input or result."""
    return Refusal(404, "not_found", "There is nothing of that name.")


def unknown_token() -> Refusal:
    """Whoever asks is nobody's user."""
    return Refusal(401, "token", "The token is missing, unknown or was revoked.", "Ask for one.")


def disk_full() -> Refusal:
    """A write met a full disk, or would."""
    return Refusal(507, DiskFull.code, "The server's disk is full.", "Try again later, or tell whoever runs it.")


def failed() -> Refusal:
    """Something that is not the client's fault and not said to it."""
    return Refusal(500, "internal", "The server failed.", "Tell whoever runs it; its log says more.")


def refusal_of(error: BaseException) -> Refusal:
    """What whoever met an error of the server's own is told: that the disk is full, or that the server failed."""
    is_full = isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in NO_SPACE)
    return disk_full() if is_full else failed()
