"""Pages of HTML from templates: what comes from a file's name or header is escaped, and holds nothing invisible."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..text import LINES, printable


def render_page(template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable[[Any], str]]) -> str:
    """A page as text.

    Args:
        template: file, which may extend others of its folder or of this one.
        values: what stands in it, by name; one that is missing is an error.
        filters: of the template's own, by name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return printable(environment.get_template(template.name).render(values), LINES)
