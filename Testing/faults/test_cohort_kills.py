"""The campaign that kills a cohort's processes: what it would call a fault, it does."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from diffusion_anomaly.io.records import record

from . import cohort


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A cohort's folder with two results that are whole, as far as the campaign looks."""
    for name in ("a", "b"):
        place = tmp_path / "results" / name
        place.mkdir(parents=True)
        (place / "heat.nii.gz").write_bytes(name.encode())
        (place / "findings.json").write_text("{}", encoding="utf-8")
        _record(place)
    (tmp_path / "scans.csv").write_text("name,findings\na,1\nb,0\n", encoding="utf-8")
    return tmp_path


def _record(place: Path) -> None:
    files = {path.name: sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}
    files.pop("provenance.json", None)
    record({"cohort": {}, "files_sha256": files})(place / "provenance.json")


def faults(output: Path, account: cohort.Account | None = None) -> list[str]:
    return [*cohort._of_results(output, 2, account or cohort.Account()), *cohort._of_tables(output, 2)]


def test_whole_results_are_no_fault(output: Path) -> None:
    assert faults(output) == []


def test_a_half_result_is_a_fault(output: Path) -> None:
    (output / "results/a/provenance.json").unlink()
    assert faults(output) == ["a: no whole result"]


def test_bytes_that_are_not_those_written_and_litter_are_faults(output: Path) -> None:
    (output / "results/b/heat.nii.gz").write_bytes(b"x")
    (output / "results/a/.unfinished-1").mkdir()
    assert faults(output) == ["a: it holds .unfinished-1 too", "b: heat.nii.gz is not as it was written"]


def test_a_missing_scan_and_one_with_two_rows_are_faults(output: Path) -> None:
    (output / "scans.csv").write_text("name\na\na\n", encoding="utf-8")
    assert faults(output) == ["a has 2 rows", "the table has 1 scans of 2"]


def test_a_scan_that_was_done_twice_is_a_fault(output: Path) -> None:
    account = cohort.Account()
    account.look(output)
    account.look(output)
    assert account.faults == [] and set(account.records) == {"a", "b"}
    os.utime(output / "results/a/provenance.json", ns=(1, 1))
    account.look(output)
    assert account.faults == ["a: its finished result was done again"]
    (output / "results/b/provenance.json").unlink()
    account.look(output)
    assert account.faults[1:] == ["b: its finished result was lost"]
    account.told.update(["a", "a", "b"])
    assert "a: said to be done 2 times" in cohort._of_results(output, 2, account)


def test_events_of_a_killed_run_are_read_up_to_where_they_break_off(tmp_path: Path) -> None:
    run = object.__new__(cohort._Run)
    run._events = tmp_path / "events.jsonl"
    done = json.dumps({"event": "result", "scan": "a", "files": {}})
    run._events.write_text(f'{done}\n{{"event": "progress"}}\n{done[:20]}', encoding="utf-8")
    assert run.told() == ["a"]
