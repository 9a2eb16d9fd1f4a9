"""The node's log: into a file and onto stderr, by study instance UID, without names of patients."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from ..errors import Cancelled, EngineError
from ..io.files import write_error
from ..text import PrintableFormatter

_LINE = "%(asctime)s %(levelname)s %(message)s"
_BYTES, _FILES = 10_000_000, 5


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Log of the network wing into a file, of which five of 10 MB are kept, and onto stderr.

    What other packages would say is off: it may show values of headers.

    Raises:
        InputError: when the file cannot be written.
    """
    logger = logging.getLogger(__package__)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers = [RotatingFileHandler(path, maxBytes=_BYTES, backupCount=_FILES - 1, encoding="utf-8")]
    except OSError as error:
        raise write_error(path, error) from error
    others = [logging.getLogger(name) for name in ("pydicom", "pynetdicom", "dicomweb_client", "highdicom", "urllib3")]
    before = [other.level for other in others]
    everything = [*handlers, logging.StreamHandler()]
    for handler in everything:
        handler.setFormatter(PrintableFormatter(_LINE))
        logger.addHandler(handler)
    level = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    propagate, logger.propagate = logger.propagate, False
    for other in others:
        other.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except EngineError as error:
        if not isinstance(error, Cancelled):
            logger.error("ended: %s", error.what)
        raise
    finally:
        for other, was in zip(others, before, strict=True):
            other.setLevel(was)
        logger.propagate, logger.level = propagate, level
        for handler in everything:
            logger.removeHandler(handler)
            handler.close()
