"""Nothing of the user's is ever replaced, and what is there of a result is all of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import phantom
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io import outputs
from diffusion_anomaly.io.files import Writer
from diffusion_anomaly.io.outputs import OutputFolder, prepare_folder, publish
from diffusion_anomaly.io.records import record, sha256_of
from diffusion_anomaly.results.result import Result

NAMES = ("a.txt", "sub/b.txt", "record.json")
pytestmark = pytest.mark.usefixtures("plain_report", "signals_stay")


def text(content: str) -> Writer:
    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return write


def result_of(content: str, names: tuple[str, ...] = NAMES) -> dict[str, Writer]:
    return {**{name: text(content) for name in names[:-1]}, names[-1]: record({"about": content})}


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden or not; folders hold None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


# --- What may be replaced


def test_an_earlier_result_is_replaced_and_leaves_nothing_stale(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    publish(tmp_path, result_of("first", ("more/c.txt", *NAMES)))
    publish(tmp_path, result_of("second"))
    assert set(content(tmp_path)) == {"mine.txt", "a.txt", "sub", "sub/b.txt", "record.json"}
    assert (tmp_path / "sub" / "b.txt").read_text(encoding="utf-8") == "second"
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"


def theirs(place: Path) -> None:
    place.write_text("mine")


def changed(place: Path) -> None:
    publish(place.parent, result_of("ours"))
    place.write_text("mine")


def stale_and_changed(place: Path) -> None:
    publish(place.parent, result_of("ours", ("z.txt", *NAMES)))
    (place.parent / "z.txt").write_text("mine")


def a_folder(place: Path) -> None:
    (place / "inside").mkdir(parents=True)


def a_link(place: Path) -> None:
    publish(place.parent, result_of("ours"))
    place.rename(place.parent / "elsewhere")
    place.symlink_to(place.parent / "elsewhere")


def a_dangling_link(place: Path) -> None:
    place.symlink_to(place.parent / "nowhere")


def a_foreign_record(place: Path) -> None:
    place.write_text("mine")
    (place.parent / "record.json").write_text('{"files": ["a.txt"]}')


def a_record_of_other_bytes(place: Path) -> None:
    place.write_text("mine")
    (place.parent / "record.json").write_text(json.dumps({"files_sha256": {"a.txt": "0" * 64}}))


def no_json(place: Path) -> None:
    (place.parent / "record.json").write_bytes(b"\xff[" + b"[" * 100_000)


@pytest.mark.parametrize(
    "put",
    [
        *(theirs, changed, stale_and_changed, a_folder, a_link, a_dangling_link),
        *(a_foreign_record, a_record_of_other_bytes, no_json),
    ],
)
def test_what_is_no_result_of_ours_is_refused_before_anything_is_written(
    put: Callable[[Path], None], tmp_path: Path
) -> None:
    put(tmp_path / "a.txt")
    before = content(tmp_path)
    written: list[Path] = []
    with pytest.raises(InputError, match=r"(a\.txt|z\.txt|record\.json) (is there already|was changed)") as caught:
        publish(tmp_path, {**result_of("new"), "a.txt": written.append})
    assert "output folder" in caught.value.hint
    assert written == []
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["../victim.txt", "/victim.txt", "link/victim.txt", "sub/../../victim.txt", ""])
def test_a_record_from_elsewhere_removes_nothing_outside(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    digest = sha256_of(victim)
    (out / "record.json").write_text(
        json.dumps(
            {"files_sha256": {name.replace("/victim", f"{tmp_path}/victim") if name.startswith("/") else name: digest}}
        )
    )
    with pytest.raises(InputError, match=r"record\.json"):
        publish(out, result_of("new"))
    assert victim.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "itself"])
def test_an_input_is_never_replaced_whatever_its_name(kind: str, tmp_path: Path) -> None:
    publish(tmp_path / "out", result_of("first"))
    place = tmp_path / "out" / "a.txt"
    given = tmp_path / "given"
    if kind == "symbolic link":
        given.symlink_to(place)
    elif kind == "hard link":
        os.link(place, given)
    else:
        given = place
    with (
        OutputFolder(tmp_path / "out", [given]) as folder,
        pytest.raises(InputError, match=r"a\.txt is read by this run"),
    ):
        folder.publish(result_of("second"))
    assert place.read_text(encoding="utf-8") == "first"


@pytest.mark.parametrize("place", ["", "results", "a/b", "link/results"])
def test_results_do_not_go_into_a_folder_that_is_read_as_one_scan(place: str, tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    (series / "link").symlink_to(series)
    with pytest.raises(InputError, match="read as one scan"), OutputFolder(series / place, [series]):
        pass
    assert set(content(series)) == {"link"}


@pytest.mark.parametrize("given", [None, 3, "out\0", ""])
def test_what_is_no_path_is_told(given: object) -> None:
    with pytest.raises(InputError, match="output folder"), OutputFolder(given):  # type: ignore[arg-type]
        pass


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no file system that takes no folder")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("/proc/x", "The output folder /proc/x cannot be made there."),
        ("/proc/x/y", "The output folder /proc/x/y cannot be made there."),
        ("{}/loop", "a link that leads nowhere."),
        ("{}/loop/x", "a link that leads nowhere."),
    ],
)
def test_a_folder_that_cannot_be_is_told_by_the_name_that_was_given(given: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    folder = given.format(tmp_path)
    for attempt in (OutputFolder(folder).__enter__, lambda: prepare_folder(folder)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert f"The output folder {folder} " in caught.value.what
        assert says in caught.value.what


# --- Two runs, and runs that were killed


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out"):
        with pytest.raises(InputError, match="Another run writes into"):
            publish(tmp_path / "out", result_of("other"))
        publish(tmp_path / "out" / "below", result_of("elsewhere"))
    publish(tmp_path / "out", result_of("later"))


def test_folders_that_were_made_go_when_nothing_came(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "a" / "b") as folder:
        (folder.new / "part.txt").write_text("part")
    assert content(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child")
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("moves", range(9))
def test_a_kill_between_any_two_steps_is_undone_by_the_next_run(moves: int, earlier: bool, tmp_path: Path) -> None:
    """The child is killed after so many renames; the next run finds the earlier result whole, or the new one."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    if earlier:
        publish(out, result_of("first", ("more/c.txt", *NAMES)))
    before = content(out)
    child = os.fork()
    if child == 0:
        left, replace = moves, os.replace

        def killed(source: Path, target: Path) -> None:
            nonlocal left
            left -= (
                Path(target).is_relative_to(out)
                and not Path(target).name.startswith(".partial")
                and (Path(source).parent != Path(target).parent)
            )
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        outputs.os.replace = killed
        try:
            publish(out, result_of("second"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    complete = (
        json.loads((out / "record.json").read_text(encoding="utf-8"))["about"]
        if (out / "record.json").exists()
        else None
    )
    if complete == "second":
        assert {(out / name).read_text(encoding="utf-8") for name in NAMES[:-1]} == {"second"}
    with OutputFolder(out):
        assert not list(out.glob(".*"))
        if complete != "second":
            assert content(out) == before
    publish(out, result_of("third"))
    assert set(content(out)) == {"mine.txt", "a.txt", "sub", "sub/b.txt", "record.json"}


def test_a_hidden_folder_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-symphony" / "movement").mkdir(parents=True)
    publish(tmp_path, result_of("new"))
    assert (tmp_path / ".unfinished-symphony" / "movement").is_dir()


def test_a_signal_waits_until_all_files_are_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "a.txt":
            signal.raise_signal(signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr(outputs.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, result_of("new"))
    assert set(content(tmp_path)) == {"a.txt", "sub", "sub/b.txt", "record.json"}


# --- The commands


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_scan(tmp_path_factory.mktemp("scan"), "brain", "bm", "mask")


def detect(scan: Path, output: Path, *more: object) -> int:
    arguments = ("detect", scan / "brain.nii.gz", "--mask", scan / "bm.nii.gz", "--method", "intensity", "-o", output)
    return cli.main([str(argument) for argument in (*arguments, *more)])


@pytest.fixture(scope="module")
def result(scan: Path) -> Result:
    detector = Detector(Options("intensity", device="cpu"))
    return detector(scan / "brain.nii.gz", brain=scan / "bm.nii.gz")


def test_detect_beside_its_scan_is_refused_before_anything_is_read(
    scan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(scan)
    monkeypatch.setattr("diffusion_anomaly.detection.scan.read_volume", lambda *given, **options: pytest.fail("read"))
    assert detect(scan, scan) == 2
    assert "brain.nii.gz is read by this run" in capsys.readouterr().err
    assert content(scan) == before


def test_the_same_command_replaces_its_earlier_result(scan: Path, tmp_path: Path) -> None:
    assert detect(scan, tmp_path) == 0
    (tmp_path / "notes.txt").write_text("mine")
    first = (tmp_path / "provenance.json").stat().st_ino
    assert detect(scan, tmp_path) == 0
    assert (tmp_path / "provenance.json").stat().st_ino != first
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    (tmp_path / "findings.csv").write_text("my own remarks")
    assert detect(scan, tmp_path) == 2
    assert (tmp_path / "findings.csv").read_text(encoding="utf-8") == "my own remarks"


def test_a_result_of_schema_1_is_known(scan: Path, tmp_path: Path) -> None:
    assert detect(scan, tmp_path) == 0
    place = tmp_path / "provenance.json"
    place.write_text(json.dumps({**json.loads(place.read_text(encoding="utf-8")), "schema_version": 1}))
    assert detect(scan, tmp_path) == 0


def test_threshold_beside_the_users_mask_is_refused(
    scan: Path, result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result.save(tmp_path / "result")
    os.rename(tmp_path / "result" / "heat.nii.gz", tmp_path / "heat.nii.gz")
    (tmp_path / "mask.nii.gz").write_bytes((scan / "mask.nii.gz").read_bytes())
    before = content(tmp_path)
    assert cli.main(["threshold", str(tmp_path / "heat.nii.gz"), "--at", "2", "-o", str(tmp_path)]) == 2
    assert "mask.nii.gz" in capsys.readouterr().err
    assert content(tmp_path) == before


@pytest.mark.parametrize("ours", [True, False])
def test_saving_from_python_follows_the_same_rule(ours: bool, result: Result, tmp_path: Path) -> None:
    if ours:
        result.save(tmp_path)
    else:
        (tmp_path / "report.html").write_text("mine")
    before = content(tmp_path)
    if ours:
        assert set(content(tmp_path)) == {path.name for path in result.save(tmp_path).values()}
    else:
        with pytest.raises(InputError, match=r"report\.html"):
            result.save(tmp_path)
        assert content(tmp_path) == before
    with pytest.raises(InputError, match="output folder is None"):
        result.save(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_the_way", ["evaluation.md", "montage-intensity.png", "reliability.json", "heat/intensity"])
def test_evaluate_is_refused_before_it_computes(
    in_the_way: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_anomaly.evaluation import evaluate
    from diffusion_anomaly.evaluation.dataset import Pair

    monkeypatch.setattr(evaluate, "_find_brains", lambda *given: pytest.fail("computed"))
    place = tmp_path / in_the_way
    if in_the_way.startswith("heat"):
        place.mkdir(parents=True)
        place = place / "p1.nii.gz"
    place.write_text("mine")
    pair = Pair("p1", scan / "brain.nii.gz", scan / "mask.nii.gz", scan / "bm.nii.gz")
    with pytest.raises(InputError, match=place.name):
        evaluate.run([pair], [evaluate.RunSpec("intensity")], tmp_path, "cpu")
    assert place.read_text(encoding="utf-8") == "mine"


def test_evaluate_replaces_its_earlier_result_and_keeps_names_apart(scan: Path, tmp_path: Path) -> None:
    from diffusion_anomaly.evaluation import evaluate
    from diffusion_anomaly.evaluation.dataset import Pair

    files = (scan / "brain.nii.gz", scan / "mask.nii.gz", scan / "bm.nii.gz")
    for names in (("a b", "a_b", ".."), ("a b",)):
        pairs = [Pair(name, *files) for name in names]
        evaluate.run(pairs, [evaluate.RunSpec("intensity")], tmp_path / "out", "cpu", resamples=2)
        maps = {path.name for path in (tmp_path / "out" / "heat" / "intensity").iterdir()}
        assert maps == {"a_b.nii.gz", "a_b-2.nii.gz", "_.nii.gz"} if len(names) == 3 else {"a_b.nii.gz"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
