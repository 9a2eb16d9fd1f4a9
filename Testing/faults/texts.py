"""Hostile text against what shows text: the report must keep its structure, the terminal must be told nothing."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from .verdict import Failed

if TYPE_CHECKING:
    from rich.console import Console

TEXTS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</td></tr></table><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>body{display:none}</style>",
    "<!--",
    "-->",
    "]]>",
    "<![CDATA[",
    "&lt;script&gt;&#60;script&#62;",
    "{{ 7 * 7 }}{% raw %}",
    "${7*7}",
    "[red]bold[/red]",
    "[/",
    "[link=file:///etc/hosts]x[/link]",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]0;title\x07",
    "\x9b2J\x9d0;t\x9c",
    "\x00\x01\x02\x7f",
    "line\r\x0b\x0cover",
    "\u202egnp.exe",
    "\u2066\u2069\u200f",
    "\ud800 half",
    "\udcff name",
    "\ufeff",
    "%s %n %x {0} {name}",
    "../../../etc/passwd",
    "=cmd|' /C calc'!A0",
    "😀" * 50,
    "a" * 5000,
    "\u0301" * 200,
)


class Structure(HTMLParser):
    """Which tags and attributes a page has, and how often."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: Counter[str] = Counter()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.found.update(f"{tag} {name}" for name, _ in attributes)

    def handle_comment(self, data: str) -> None:
        self.found["comment"] += 1

    def unknown_decl(self, data: str) -> None:
        self.found["declaration"] += 1


def hostile_text(chance: random.Random) -> str:
    """One of the texts, or several of them with ordinary ones between."""
    parts = chance.choices((*TEXTS, "Søn", " ", "FLAIR"), k=chance.choice((1, 1, 2, 4)))
    return "".join(parts)


def replaced(content: Any, chance: random.Random, share: float) -> Any:
    """Provenance with some of its texts, and some keys of mappings of free form, replaced by hostile ones."""
    if isinstance(content, dict):
        return {key: value if key in _FIXED else replaced(value, chance, share) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [replaced(entry, chance, share) for entry in content]
    if isinstance(content, str) and chance.random() < share:
        return hostile_text(chance)
    return content


_FIXED = ("date_utc",)


@cache
def _shown() -> Any:
    import phantom
    from diffusion_anomaly.detection.detector import Detector
    from diffusion_anomaly.detection.planning import Options
    from diffusion_anomaly.results.report import Shown

    empty = phantom.grid((24, 28, 6), (8.0, 8.0, 20.0))
    brain = phantom.brain_of(empty)
    result = Detector(Options(method="intensity", device="cpu"))(
        phantom.as_volume(phantom.paint(empty, fluid=True)), brain=brain
    )
    return Shown(
        "scan",
        result.scan.reference.image,
        result.anomaly_map,
        result.mask,
        result.brain,
        result.findings,
        result.threshold,
        {**result.provenance, "warnings": ["a", "b"]},
        {finding.id: "a name" for finding in result.findings},
    )


def check_report(chance: random.Random) -> None:
    """A report whose every text is hostile has the tags and attributes of an ordinary one, and can be written.

    Raises:
        Failed: saying what more it has.
    """
    from diffusion_anomaly.results.report import render

    usual = _shown()
    share = chance.choice((0.2, 1.0))
    hostile = replace(
        usual,
        name=hostile_text(chance),
        names={key: hostile_text(chance) for key in usual.names},
        provenance=replaced(dict(usual.provenance), chance, share),
    )
    page = render(hostile)
    page.encode("utf-8")
    expected, found = _structure(), Structure(page).found
    if found != expected:
        raise Failed(f"the report has {dict(found - expected)} more and {dict(expected - found)} less")
    check_plain(page)


@cache
def _structure() -> Counter[str]:
    from diffusion_anomaly.results.report import render

    return Structure(render(_shown())).found


def check_terminal(chance: random.Random) -> None:
    """What is printed of a hostile text.

    Raises:
        Failed: naming the character.
    """
    from diffusion_anomaly.cli.console import SafeConsole

    check_printed(hostile_text(chance), SafeConsole)


def check_printed(text: str, kind: Callable[..., Console]) -> None:
    """What the command line prints of hostile text, a terminal shows and does not obey.

    Raises:
        Failed: naming the character.
    """
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    from diffusion_anomaly.errors import InputError

    for is_terminal in (False, True):
        bytes_written = io.BytesIO()
        stream = io.TextIOWrapper(bytes_written, encoding="utf-8")
        # Without a colour system rich writes no escapes of its own, neither colours nor links.
        console = kind(file=stream, force_terminal=is_terminal, color_system=None, highlight=False, soft_wrap=True)
        table = Table()
        table.add_column(Text(text))
        table.add_row(Text(text))
        for shown in (Text(text), Text(str(InputError(text, text))), Markdown(text), table):
            console.print(shown)
        stream.flush()
        check_plain(bytes_written.getvalue().decode("utf-8"))


def check_plain(text: str) -> None:
    """Refuse control characters but tab and line feed, and those that turn text around.

    Raises:
        Failed: naming the first.
    """
    for letter in text:
        code = ord(letter)
        if (code < 32 and letter not in "\t\n") or 0x7F <= code < 0xA0 or 0x202A <= code <= 0x202E:
            raise Failed(f"the text holds U+{code:04X}")
