"""What becomes of something sent that does not arrive: it may arrive later, or never will."""

from __future__ import annotations

from ..errors import EngineError


class Unreachable(EngineError):  # noqa: N818 - reads as the event it is
    """It did not work now, and may later."""

    code = "unreachable"


class Refused(EngineError):  # noqa: N818 - reads as the event it is
    """The other side will not have it, now or later."""

    code = "refused"
