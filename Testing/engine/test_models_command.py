"""``diffusion-anomaly models``: a table for people, a card for whoever wants to know more, JSON for programs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import packages
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.cli import models
from diffusion_anomaly.errors import ModelError
from diffusion_anomaly.models.package import Bundle

BUILT_IN = (
    "brain-mask",
    "chest-pneumonia-guided",
    "flair-guided",
    "flair-intensity",
    "flair-localise",
    "flair-restore",
    "flair-unsupervised",
    "glioma-guided",
    "headct-localise",
    "scan-recognition",
)
QUALITY = {"measured on": "phantoms", "patients": 3, "average precision": 0.123456, "Dice": 0.5}

Terminal = Callable[[int], io.StringIO]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package with measured quality, one without, and one that is damaged."""
    folder = tmp_path / "packages"
    packages.unsupervised(folder / "toy-measured", quality=QUALITY)
    packages.intensity(folder / "toy-unmeasured")
    damaged = packages.intensity(folder / "toy-damaged").path
    (damaged / "configs" / "anomaly.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Bundle:
    return packages.unsupervised(tmp_path / "toy", quality=QUALITY)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of a width in place of stdout, without colours; what it shows."""

    def replace(width: int) -> io.StringIO:
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=width, color_system=None, soft_wrap=True)
        monkeypatch.setattr(models, "out", console)
        return shown

    return replace


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["models", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def row_of(text: str, name: str) -> str:
    (row,) = (line for line in text.partition("\n\n")[0].splitlines() if line.startswith(f"{name} "))
    return row


def test_a_terminal_of_100_columns_shows_a_line_a_package(folder: Path, terminal: Terminal) -> None:
    shown = terminal(100)
    assert cli.main(["models"]) == 0
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["name", "version", "method", "expects", "licence", "size", "quality"]
    for name in BUILT_IN:
        assert len(row_of(shown.getvalue(), name)) <= 100
    assert "…" not in shown.getvalue()
    assert "average precision" in lines[-1]


def test_a_narrow_terminal_wraps_cells_and_cuts_no_line(terminal: Terminal) -> None:
    shown = terminal(88)
    assert cli.main(["models"]) == 0
    table = shown.getvalue().partition("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 88
    assert "FLAIR" in table
    assert "CC-BY-NC-SA-4.0" in table


def test_piped_each_package_is_one_plain_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--folder", folder)
    assert "\x1b" not in text
    assert "…" not in text
    row = row_of(text, "toy-measured")
    for cell in ("0.1.0", "unsupervised", "FLAIR, axial, 4 mm", "CC0-1.0", " MB", "AP 0.123"):
        assert cell in row
    assert row_of(text, "toy-unmeasured").rstrip().endswith("not measured")
    assert row_of(text, "brain-mask").rstrip().endswith("Dice 0.918, lowest")
    assert row_of(text, "chest-pneumonia-guided").rstrip().endswith("AUROC up to 0.97")
    assert f"toy-measured is in {folder / 'toy-measured'}" in text.splitlines()
    assert "flair-localise is in" not in text


def test_a_package_with_a_problem_is_listed_with_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--folder", folder)
    assert "problem" in row_of(text, "toy-damaged")
    (problem,) = (line for line in text.splitlines() if line.startswith("problem with"))
    assert str(folder / "toy-damaged") in problem
    assert "configs/anomaly.json" in problem
    assert row_of(text, "toy-measured")


def test_the_list_as_json_holds_what_was_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summaries = {entry["name"]: entry for entry in json.loads(run(capsys, "--folder", folder, "--json"))}
    assert set(summaries) == {*BUILT_IN, "toy-measured", "toy-unmeasured", "toy-damaged"}
    assert summaries["toy-measured"]["license"] == "CC0-1.0"
    assert summaries["toy-measured"]["quality"] == QUALITY
    assert summaries["toy-damaged"]["problem"]


def test_show_piped_is_the_card_and_the_declaration_as_they_are(
    package: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(capsys, "show", package.path)
    assert text.startswith(package.model_card.rstrip() + "\n\n## Declaration\n")
    for line in (
        f"- Folder: `{package.path}`",
        f"- SHA256: `{package.sha256}`",
        "| name | toy |",
        "| grid.size | 40, 48 |",
        "| options.kl_levels | 2 |",
        "| calibration.raw | 0, 0.25, 0.5 |",
        "| quality.average precision | 0.123 |",
    ):
        assert line in text.splitlines()


def test_show_says_quality_once_where_the_card_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "show", "flair-localise")
    assert "## Measured quality" in text
    assert sum(line.startswith(("| average precision |", "| quality.average")) for line in text.splitlines()) == 1
    assert "| quality." not in text


def test_show_keeps_long_lists_and_brackets_in_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale = [index / 1000 for index in range(200)]
    bundle = packages.unsupervised(
        tmp_path / "toy", calibration={"raw": scale, "heat": scale, "source": "[red]a|b[/red]"}
    )
    text = run(capsys, "show", bundle.path)
    assert "| calibration.raw | 0 … 0.199 (200 values) |" in text.splitlines()
    assert "| calibration.source | [red]a\\|b[/red] |" in text.splitlines()
    assert max(len(line) for line in text.splitlines()) < 250


def test_show_on_a_terminal_renders_the_markdown(terminal: Terminal) -> None:
    shown = terminal(100)
    assert cli.main(["models", "show", "flair-localise"]) == 0
    text = shown.getvalue()
    assert "Lesion localiser for brain FLAIR" in text
    assert "Declaration" in text
    assert "grid.spacing" in text
    assert "|---" not in text
    assert "## " not in text
    assert max(map(len, text.splitlines())) <= 100


def test_show_as_json_holds_card_and_declaration(package: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(run(capsys, "show", package.path, "--json"))
    assert shown == {
        "path": str(package.path),
        "sha256": package.sha256,
        "declaration": package.anomaly,
        "metadata": package.metadata,
        "model_card": package.model_card,
    }


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_show_of_what_is_no_package_says_why(
    folder: Path, json_too: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, reason in (("no-such-model", "Unknown model"), (folder / "toy-damaged", "configs/anomaly.json")):
        assert cli.main(["models", "show", str(name), *json_too]) == ModelError.exit_code
        printed = capsys.readouterr()
        assert not printed.out
        assert reason in printed.err
