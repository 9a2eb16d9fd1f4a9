"""Answers that refuse: what a client is told, and the HTTP status that goes with it."""

from __future__ import annotations

from typing import Any

from ..errors import DiskFull, EngineError


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """A request that is answered with an error.

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


NOT_FOUND = Refusal(404, "not_found", "There is nothing of that name.")
UNKNOWN_TOKEN = Refusal(401, "token", "The token is missing, unknown or was revoked.", "Ask for one.")
DISK_FULL = Refusal(507, DiskFull.code, "The server's disk is full.", "Try again later, or tell whoever runs it.")
FAILED = Refusal(500, "internal", "The server failed.", "Tell whoever runs it; its log says more.")
