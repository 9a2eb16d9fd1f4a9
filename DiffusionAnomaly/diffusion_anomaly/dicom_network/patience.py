"""What went wrong in a way that nobody foresaw is put off, so that it holds up nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Cancelled, EngineError, ModelError
from .config import Retry

log = logging.getLogger(__name__)


class Patience:
    """Does things by name, and leaves those that failed alone for a while, each time for longer.

    Args:
        retry: how long.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._failed: dict[str, tuple[int, float]] = {}  # how often, and until when it is left alone

    def allows(self, name: str) -> bool:
        """Whether it may be tried now."""
        return time.monotonic() >= self._failed.get(name, (0, 0.0))[1]

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """What is raised in the body is logged and goes no further, unless it is the end of all.

        Raises:
            Cancelled, ModelError: as they come.
        """
        try:
            yield
        except (Cancelled, ModelError):
            raise
        except Exception as error:  # what did not work is still there to be done
            tries = self._failed.get(name, (0, 0.0))[0] + 1
            pause = self._retry.pause(tries)
            self._failed[name] = tries, time.monotonic() + pause
            log.error(
                "%s: %s; tried again in %.0f s", name, _told(error), pause, exc_info=log.isEnabledFor(logging.DEBUG)
            )
        else:
            self._failed.pop(name, None)


def _told(error: Exception) -> str:
    """Without the path of an error of the system, which in a watched folder may be a patient's name."""
    if isinstance(error, EngineError):
        return error.what
    name = type(error).__name__
    return f"{name}: {error.strerror}" if isinstance(error, OSError) and error.strerror else name
