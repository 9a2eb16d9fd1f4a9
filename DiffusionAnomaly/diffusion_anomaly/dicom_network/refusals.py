"""What becomes of something sent that does not arrive: it may arrive later, or never will."""

from __future__ import annotations

from ..errors import EngineError

# Statuses of C-STORE, and failure reasons of STOW-RS, after which the same may succeed: out of resources; processing
# failure and resource limitation, by which archives say that something of theirs is down.
PASSING = frozenset({*range(0xA700, 0xA800), 0x0110, 0x0213})


class Unreachable(EngineError):  # noqa: N818 - reads as the event it is
    """It did not work now, and may later."""

    code = "unreachable"


class Refused(EngineError):  # noqa: N818 - reads as the event it is
    """The other side will not have it, now or later."""

    code = "refused"
