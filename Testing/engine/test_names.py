"""Whatever a scan is called, its results lie in the output folder under a legal name that no terminal obeys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

import packages
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.cli.batch import output_folders
from diffusion_anomaly.results.result import Result
from diffusion_anomaly.text import printable, safe_name

ENGINE = Path(cli.__file__).parents[2]
HOSTILE = "a\x1b[31m\u202e\n\x9b\udcff.nii.gz"
NAMES = [
    *("..", "a/..", ".", "..nii", "...nii.gz", ".nii", "/", "a/../..", "scan/", "..\\..\\x.nii"),
    *("CON.nii", "nul", "aux.b.nii.gz", "COM1", "trailing..nii", "space .nii", "-rf.nii", "~root.nii"),
    *("a:b.nii", 'q"<>|?*.nii', "é.nii", "e\u0301.nii", "E\u0301.nii", "SCAN.nii", "scan.nii.gz", "ﬁ.nii", "fi.nii"),
    *("x" * 247 + ".nii.gz", "ü" * 120 + ".nii", "\udcff\udcfe.nii", "new\nline.nii", HOSTILE, "\u200b.nii"),
]


def test_every_name_gives_a_legal_folder_of_its_own_in_the_output() -> None:
    folders = output_folders([Path(name) for name in NAMES], Path("out"))
    assert {folder.parent for folder in folders} == {Path("out")}
    folded = {unicodedata.normalize("NFKC", folder.name).casefold() for folder in folders}
    assert len(folded) == len(NAMES)
    for name in (folder.name for folder in folders):
        assert 0 < len(name.encode()) <= 255  # and so it is UTF-8
        assert not set(name) & set('<>:"/\\|?*')
        assert name == printable(name)
        assert not name.startswith((".", "-", "~"))
        assert not name.endswith((".", " "))
        assert name.split(".")[0].casefold() not in {"con", "nul", "aux", "com1"}


def test_a_plain_name_stays_as_it_is() -> None:
    for name in ("kopf 1", "x.y", "Übung_2", "patient-007", "頭部"):
        assert safe_name(name) == name


def test_anonymous_folders_are_numbered() -> None:
    folders = output_folders([Path("Doe.nii"), Path("Roe.nii")], Path("out"), anonymous=True)
    assert folders == [Path("out/scan-001"), Path("out/scan-002")]


@pytest.mark.parametrize(
    "character", ["\x1b", "\x07", "\x7f", "\x9b", "\u202e", "\u2066", "\u200f", "\n", "\udcff", "\ue000"]
)
def test_what_a_terminal_obeys_is_shown_as_its_escape(character: str) -> None:
    shown = printable(f"a{character}b")
    assert character not in shown
    assert shown.startswith("a\\")
    assert shown.endswith("b")


def called(result: Result, name: str) -> Result:
    about = {**result.provenance["input"], "title": name, "path": name, "metadata": {"description": name}}
    return replace(result, provenance={**result.provenance, "input": about, "warnings": [name]})


def test_a_result_of_any_name_is_written_and_is_utf_8(small_result: Result, tmp_path: Path) -> None:
    files = called(small_result, HOSTILE).save(tmp_path / "out")
    for kind in ("provenance", "report", "findings_csv", "findings_json"):
        text = files[kind].read_bytes().decode("utf-8")
        assert "\x1b" not in text or kind == "report"
    assert json.loads(files["provenance"].read_text(encoding="utf-8"))["input"]["title"] == HOSTILE


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_results_go_into_a_folder_whose_name_is_no_text(small_result: Result, tmp_path: Path) -> None:
    files = small_result.save(tmp_path / "out \udcff")
    assert {path.name for path in files.values()} == set(os.listdir(tmp_path / "out \udcff"))


def test_a_hostile_name_is_never_printed_raw(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a\x1b[31m\u202e\n\x9b.nii.gz"
    monkeypatch.setattr("diffusion_anomaly.results.report.write_report", lambda result, path: path.write_text("page"))
    scan = tmp_path / name
    scan.write_bytes((scans / "scan.nii.gz").read_bytes())
    arguments = ["--mask", str(scans / "brain.nii.gz"), "--method", "intensity"]
    assert cli.main(["detect", str(scan), *arguments, "-o", str(tmp_path / f"out{name}")]) == 0
    assert cli.main(["detect", str(scan), *arguments, "-o", str(scan)]) == 2
    assert cli.main(["--debug", "detect", str(scan) + "x", "-o", str(tmp_path / "o"), "--method", "intensity"]) == 2
    assert cli.main(["detect", str(scan), str(scan) + "x", f"--{name}", "-o", "x"]) == 2
    printed = capsys.readouterr()
    assert "a\\x1b[31m" in printed.out
    assert "a\\x1b[31m" in printed.err
    for text in (printed.out, printed.err):
        assert not set(text) & {"\x1b", "\u202e", "\x9b"}


def test_what_a_package_says_is_never_printed_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packages.intensity(tmp_path / "toy", modality="FLAIR")
    declaration = tmp_path / "toy" / "configs" / "anomaly.json"
    text = declaration.read_text(encoding="utf-8")
    declaration.write_text(text.replace('"FLAIR"', '"FLAIR \\u001b[2J\\u009b\\u202e"'), encoding="utf-8")
    for arguments, code in ((["models", "--folder", str(tmp_path)], 0), (["models", "show", str(tmp_path / "toy")], 3)):
        for more in ([], ["--json"]):
            assert cli.main([*arguments, *more]) == code
            printed = capsys.readouterr()
            assert "toy" in printed.out + printed.err
            assert not set(printed.out + printed.err) & {"\x1b", "\x9b", "\u202e"}


def test_the_c_locale_prints_and_writes_any_name(scans: Path, small_result: Result, tmp_path: Path) -> None:
    called(small_result, "Übung \udcff").save(tmp_path / "first")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "diffusion_anomaly",
            "threshold",
            "first/heat.nii.gz",
            "--at",
            "2",
            "-o",
            "Übung \udcff",
        ],
        cwd=tmp_path,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))},
            **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ENGINE)},
        },
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"warning: \\xdcbung \\udcff\n")
    assert done.stdout.isascii()
    assert {"mask.nii.gz", "threshold.json"} <= set(os.listdir(tmp_path / "Übung \udcff"))
