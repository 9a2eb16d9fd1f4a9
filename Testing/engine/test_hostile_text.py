"""Text that is code for whoever shows it: report, terminal and panel show it as text."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

import packages
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.errors import EngineError, InputError, ModelError
from diffusion_anomaly.models.package import open_bundle
from diffusion_anomaly.text import LINES, printable
from DiffusionAnomalyLib.progresstext import plain
from Testing.faults import texts

PANEL = Path(__file__).parents[2] / "DiffusionAnomaly" / "DiffusionAnomalyLib"


@pytest.mark.parametrize("seed", range(12))
def test_a_report_of_hostile_text_has_the_structure_of_an_ordinary_one(seed: int) -> None:
    texts.check_report(random.Random(seed))


@pytest.mark.parametrize("seed", range(60))
def test_the_terminal_is_told_nothing_by_hostile_text(seed: int) -> None:
    texts.check_terminal(random.Random(seed))


@pytest.mark.parametrize("text", texts.TEXTS)
def test_an_error_can_be_shown_and_written_whatever_it_quotes(text: str) -> None:
    error = InputError(f"Found {text}.", text)
    str(error).encode("utf-8")
    texts.check_plain(str(error) + error.what + error.hint)
    assert len(str(EngineError("x" * 10**6))) < 3000
    assert printable("ß 日本 😀\n\t", LINES) == "ß 日本 😀\n\t"


def test_a_folder_with_escapes_in_its_name_is_named_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = packages.intensity(tmp_path / "toy").path
    hostile = package.rename(tmp_path / "\x1b[31mred\x1b]0;t\x07")
    (hostile / "configs" / "anomaly.json").write_text("{}")
    with pytest.raises(ModelError) as raised:
        open_bundle(hostile)
    texts.check_plain(str(raised.value))
    for arguments in (["--folder", tmp_path], ["verify", hostile], ["--folder", tmp_path, "--json"]):
        cli.main(["models", *map(str, arguments)])
        shown = capsys.readouterr()
        assert "red" in shown.out + shown.err
        texts.check_plain(shown.out + shown.err)


@pytest.mark.parametrize("text", ["<b>x</b>", "<img src='file:///etc/hosts'>", "a\n<script>", "1 < 2"])
def test_a_widget_that_guesses_is_given_text_without_tags(text: str) -> None:
    shown = plain(text)
    assert set(re.findall(r"<[^>]*>", shown)) <= {"<span>", "</span>", "<br>"}
    assert shown.startswith("<span>")  # so that the widget does not take the entities for text


def test_a_widget_is_given_ordinary_text_as_it_is() -> None:
    assert plain("a & b\nc") == "a & b\nc"


def test_no_dialog_or_tool_tip_of_the_panel_shows_text_from_outside_as_html() -> None:
    shows = r"(?:warningDisplay|messageBox|setToolTip|errorDisplay)\("
    call = re.compile(shows + r"(?!\s*(?:plain\(|_\(\"[^\"{]*\"\)))(.{0,40})")
    found = [
        (file.name, match)
        for file in sorted((PANEL / "panel").glob("*.py"))
        for match in call.findall(file.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_page_that_the_check_reads_can_fail() -> None:
    clean = "<p class='a'>text</p>"
    assert texts.Structure(clean).found != texts.Structure(clean.replace("text", texts.TEXTS[0])).found
    with pytest.raises(texts.Failed):
        texts.check_plain("\x1b[31m")
