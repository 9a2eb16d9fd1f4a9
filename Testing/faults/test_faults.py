"""The short form of the campaigns of faults, with fixed seeds; ``make faults`` is the long one."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import rich.console

from diffusion_anomaly.cli.console import SafeConsole
from Testing.faults import campaign, inputs, kills, pool, texts
from Testing.faults.pool import Verdict
from Testing.faults.verdict import Failed

# Escape, control sequence, and what turns text around: what rich hands on as it is.
OBEYED = set("\x1b\x9b\u202e\x7f\ud800\udcff")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and processes as Linux has them")


@pytest.mark.parametrize("kind", campaign.KINDS)
def test_no_case_of_the_short_campaign_fails(kind: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    failed = campaign.main(["--only", kind, "--short", "--processes", "2", "--json", str(found)])
    summary = json.loads(found.read_text(encoding="utf-8"))
    assert summary["failures"] == [] and failed == 0
    assert summary["kinds"][kind]["counted"] >= campaign.count_of(kind, short=True)


def test_a_short_campaign_that_ended_no_process_at_work_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "run", lambda folder, cases: (Verdict("kill", seed, pool.FINISHED) for seed in cases))
    assert campaign.main(["--only", "kill", "--short"]) == 1


def test_every_wrong_end_of_a_case_is_a_failure_of_that_case_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MOST_SECONDS", 1.0)
    (tmp_path / "seeds-self-test").mkdir()
    found = {v.seed: v for v in pool.run("self-test", tmp_path / "seeds-self-test", iter(range(8)), 1)}
    outcomes = {seed: verdict.outcome for seed, verdict in found.items()}
    assert outcomes == {
        0: "result",
        1: "InputError",
        2: "crash",
        3: "hang",
        4: "memory",
        5: "noise",
        6: "KeyError",
        7: "wrong",
    }
    assert [seed for seed, verdict in sorted(found.items()) if not verdict.failure] == [0, 1]
    tally = campaign.Tally("self-test")
    for verdict in found.values():
        tally.add(verdict)
    assert campaign.summary([tally], 0)["kinds"]["self-test"]["failures"] == 6  # type: ignore[index]


def test_a_case_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds-input"
    seeds.mkdir()
    inputs.prepare(seeds)
    made = []
    for turn in ("one", "two"):
        contents = {}
        for seed in range(40):
            folder = tmp_path / turn / str(seed)
            folder.mkdir(parents=True)
            inputs.mutated(seeds, folder, pool.chance_of("input", seed))
            contents |= {path.relative_to(tmp_path / turn): path.read_bytes() for path in _files(folder)}
        made.append(contents)
    assert made[0] == made[1]
    originals = {path.read_bytes() for path in _files(seeds)}
    changed = {path.parts[0] for path, data in made[0].items() if data not in originals}
    assert len(changed) > 30, "hardly anything was mutated"


def test_half_a_result_and_litter_are_told_from_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert kills._results(tmp_path / "results", True) == ""
    (tmp_path / "results" / "heat.nii.gz").write_bytes(b"")
    with pytest.raises(Failed, match="without provenance"):
        kills._results(tmp_path / "results", True)
    (tmp_path / "results" / kills.RECORD).write_text("{}")
    with pytest.raises(Failed, match="without its whole result"):
        kills._results(tmp_path / "results", True)
    (tmp_path / "results" / ".unfinished-x").mkdir()
    with pytest.raises(Failed, match="unfinished"):
        kills._check_litter(tmp_path)


def test_a_case_that_does_not_exist_is_refused() -> None:
    for case in ("input", "input:x", "nothing:1"):
        with pytest.raises(SystemExit) as ended:
            campaign.main(["--case", case])
        assert ended.value.code == 2


def test_a_campaign_in_minutes_ends_in_time() -> None:
    assert list(campaign.for_seconds(5, -1.0)) == []
    assert next(campaign.for_seconds(5, 60.0)) == 5
    assert pool.chance_of("input", 1).random() != random.Random(1).random()


def test_the_long_form_reaches_the_documented_counts() -> None:
    assert campaign.count_of("input") >= 10_000 and campaign.count_of("kill") >= 200


def test_processes_are_started_until_enough_were_at_work_when_their_end_came() -> None:
    tally = campaign.Tally("kill", goal=3)
    for seed in campaign.until_reached(1, tally):
        tally.add(pool.Verdict("kill", seed, "detect SIGKILL" if seed % 2 else pool.FINISHED))
    assert tally.reached and (tally.cases, tally.counted) == (5, 3)
    never = campaign.Tally("kill", goal=3)
    for seed in campaign.until_reached(1, never):
        never.add(pool.Verdict("kill", seed, pool.FINISHED))
    assert not never.reached and never.cases == 3 * campaign.MOST_DRAWS


def test_progress_says_how_long_the_rest_takes_and_only_failures_are_kept() -> None:
    tally = campaign.Tally("input", goal=1000, seconds=20.0)
    for seed in range(400):
        tally.add(pool.Verdict("input", seed, "result", "too long" if seed == 7 else ""))
    assert tally.progress == "input: 400 of 1,000 after 20 s, 1 failures, 30 s to go"
    assert [verdict.seed for verdict in tally.failures] == [7]


@pytest.mark.parametrize("text", [*texts.TEXTS, "[a link](http://example.org)"], ids=ascii)
def test_a_terminal_obeys_no_text_and_one_that_would_is_noticed(text: str) -> None:
    texts.check_printed(text, SafeConsole)
    if set(text) & OBEYED:
        with pytest.raises((Failed, UnicodeEncodeError)):
            texts.check_printed(text, rich.console.Console)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
