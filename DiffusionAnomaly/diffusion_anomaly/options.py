"""Options that know their own ranges, so that a bad one is refused where it is made, by name.

The ranges and descriptions travel as field metadata; a panel or a command line can read them from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import InputError
from .text import counted

# Scores are -log10 of a probability; the highest in 190 maps of all methods was 18.
HIGHEST_THRESHOLD = 1000.0
THRESHOLDS = f"an anomaly score above 0 and of at most {HIGHEST_THRESHOLD:g}"
MARGINS = f"an anomaly score of at least 0 and of at most {HIGHEST_THRESHOLD:g}"


@dataclass(frozen=True)
class MethodOptions:
    """Base of every method's options: each field carries its range, and a value outside it is refused."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if "allowed" in option.metadata:
                check_choice(option.name, value, option.metadata["allowed"])
            elif "words" in option.metadata:
                check_words(option.name, value, option.metadata["words"])
            elif "low" in option.metadata and not (value is None and option.default is None):
                low, high, whole = (option.metadata[key] for key in ("low", "high", "whole"))
                # JSON has one kind of number: 2 for 2.0 is stored as the float it stands for.
                value = check_number(option.name, value, low, high, whole=whole)
                object.__setattr__(self, option.name, value)

    @property
    def most_steps(self) -> int | None:
        """How many steps could be walked with the other options as they are; None for a method without steps."""
        return None


def number(default: float | None, low: float, high: float, about: str) -> Any:
    """A field for a number within [low, high], whole if the default is; None only as a default."""
    whole = isinstance(default, int)
    return field(default=default, metadata={"low": low, "high": high, "whole": whole, "about": about})


def choice(default: str, allowed: Sequence[str], about: str) -> Any:
    """A field for one of a few words."""
    return field(default=default, metadata={"allowed": tuple(allowed), "about": about})


def choice_a_channel(default: str, allowed: Sequence[str], about: str) -> Any:
    """A field for one of a few words, or for one a channel of the model, with spaces between; ``none`` skips one."""
    return field(default=default, metadata={"words": tuple(allowed), "about": about})


def flag(default: bool, about: str) -> Any:
    """A field for yes or no."""
    return field(default=default, metadata={"allowed": (True, False), "about": about})


def check_number(name: str, value: Any, low: float, high: float, *, whole: bool) -> float:
    """The value, if it is a number within [low, high] and whole if asked.

    Raises:
        InputError: naming the option, the value found and the range, if it is not.
    """
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # neither NaN nor an integer beyond floats is between the two
        kind = "a whole number" if whole else "a number"
        raise InputError(f"Option {name} is {shown(value)}.", f"It must be {kind} from {low:g} to {high:g}.")
    return value if whole else float(value)


def check_words(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse what is neither one of the allowed words nor several of these and ``none``, not ``none`` alone."""
    words = value.split() if isinstance(value, str) else []
    known = allowed if len(words) == 1 else (*allowed, "none")
    if not words or set(words) == {"none"} or any(word not in known for word in words):
        raise InputError(
            f"Option {name} is {shown(value)}.",
            f"It must be one of {', '.join(allowed)}; or one of these or none for each channel, with spaces between.",
        )


def words_by_channel(name: str, value: str, channels: int) -> list[str]:
    """The word for each channel, of an option with one for all or one for each.

    Raises:
        InputError: for another number of words.

    >>> words_by_channel("side", "bright", 2), words_by_channel("side", "bright none", 2)
    (['bright', 'bright'], ['bright', 'none'])
    """
    words = value.split()
    if len(words) not in (1, channels):
        raise InputError(
            f"Option {name} is {shown(value)}, {counted(len(words), 'word')} for {counted(channels, 'channel')}.",
            "Give one word for all channels, or one for each.",
        )
    return words * channels if len(words) == 1 else words


def check_threshold(value: Any) -> None:
    """Refuse what is no threshold of anomaly scores.

    Raises:
        InputError: for anything but a number above 0 and of at most ``HIGHEST_THRESHOLD``.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= HIGHEST_THRESHOLD:
        raise InputError(f"The threshold is {shown(value)}.", f"It must be {THRESHOLDS}.")


def check_margin(value: Any) -> None:
    """Refuse what cannot be how far a finding's highest score exceeds the threshold.

    Raises:
        InputError: for anything but a number from 0 to ``HIGHEST_THRESHOLD``.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= HIGHEST_THRESHOLD:
        raise InputError(f"The peak margin is {shown(value)}.", f"It must be {MARGINS}.")


def margin_of(options: Mapping[str, Any]) -> float:
    """The peak margin that a result's options tell of; 0 in those of earlier versions, which had none.

    Raises:
        InputError: for anything but a number from 0 to ``HIGHEST_THRESHOLD``.
    """
    margin = options.get("peak_margin", 0.0)
    check_margin(margin)
    return float(margin)


def is_finite(value: float) -> bool:
    """Whether a number is finite as a float; integers may be beyond them."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value as a message quotes it, however large it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of thousands of digits; nested without end
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 100 else f"{text[:80]}…"


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a value that is not one of the allowed ones."""
    if not any(value is a or (isinstance(value, str) and value == a) for a in allowed):
        raise InputError(f"Option {name} is {shown(value)}.", f"It must be one of {', '.join(map(str, allowed))}.")
