"""What became of a case."""

from __future__ import annotations


class Failed(Exception):  # noqa: N818 - a verdict, not an error of this program
    """What was found is not what should be: the one word that ends a case."""
