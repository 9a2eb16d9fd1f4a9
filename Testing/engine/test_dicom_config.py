"""The node's configuration: what the documentation shows is valid, what is wrong is named."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from diffusion_anomaly.dicom_network.config import (
    Destination,
    Listen,
    NodeConfig,
    Peer,
    Retry,
    Watch,
    read_config,
)
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.results.dicom import DEFAULT_KINDS

pytest.importorskip("yaml", reason="needs the extra dicom-node")

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "dicom-node.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PLAIN = "folder: studies\nwatch: {folder: inbox}\n"


def read(tmp_path: Path, text: str) -> NodeConfig:
    path = tmp_path / "node.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_documentations_examples_are_valid(tmp_path: Path, text: str) -> None:
    config = read(tmp_path, text)
    assert config.listen or config.watch
    assert all(list(one.objects) for one in config.destinations.values())


def test_the_documentation_tells_every_entry_with_its_default() -> None:
    assert len(EXAMPLES) >= 3
    rows = {
        name: cells[1].strip(" `")
        for line in PAGE.splitlines()
        if line.startswith("| `") and len(cells := line.strip("|").split("|")) >= 3
        for name in re.findall(r"`([\w.…]+)`", cells[0])
    }
    sections: dict[str, type] = {"listen.": Listen, "watch.": Watch, "….": Destination, "retry.": Retry}
    nested = {"listen", "watch", "destinations", "retry", "series", "detection"}
    expected = {f"{prefix}{entry.name}" for prefix, kind in sections.items() for entry in fields(kind)}
    expected |= {entry.name for entry in fields(NodeConfig)} - nested
    expected |= {"detection", "destinations.NAME", "series.CONTRAST"}
    told = {name for name in rows if name in expected}
    assert expected - told == set()
    assert {entry.name for entry in fields(Peer)} == {"ae_title", "address"}  # told in the row of peers
    for name, default in (
        ("listen.address", Listen.address),
        ("listen.port", Listen.port),
        ("listen.most_associations", Listen.most_associations),
        ("complete_after_s", NodeConfig.complete_after_s),
        ("least_free_mb", NodeConfig.least_free_mb),
        ("retry.give_up_after_h", Retry.give_up_after_h),
    ):
        assert rows[name] == (default if isinstance(default, str) else f"{default:g}")
    assert rows["retry.first_s"] == f"{Retry.first_s:g}, {Retry.longest_s:g}"


def test_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    key = (tmp_path.parent / "b.key").as_posix()
    tls = f"tls: {{certificate: a.pem, key: '{key}'}}"
    text = f"""
folder: studies
log: log/node.log
detection: {{model: model}}
listen: {{ae_title: ANOMALY, peers: [{{ae_title: PACS}}], {tls}}}
destinations:
  back: {{folder: out}}
  pacs: {{ae_title: PACS, address: pacs, port: 104, {tls}}}
  web: {{url: "https://pacs", authorities: ca.pem}}
"""
    config = read(tmp_path, text)
    assert config.listen is not None and config.listen.tls is not None
    there = config.destinations
    assert (config.folder, config.log) == (str(tmp_path / "studies"), str(tmp_path / "log" / "node.log"))
    assert config.detection == {"model": str(tmp_path / "model")}
    assert (config.listen.tls.certificate, config.listen.tls.key) == (str(tmp_path / "a.pem"), str(Path(key)))
    assert there["pacs"].tls == config.listen.tls
    assert (there["back"].folder, there["web"].authorities) == (str(tmp_path / "out"), str(tmp_path / "ca.pem"))
    assert [tuple(one.objects) for one in there.values()] == [DEFAULT_KINDS] * 3
    assert "report" not in DEFAULT_KINDS and not config.wants_pdf


def test_a_destination_may_want_the_report(tmp_path: Path) -> None:
    text = f"{PLAIN}destinations: {{back: {{folder: out, objects: [findings, report]}}, other: {{folder: b}}}}\n"
    config = read(tmp_path, text)
    assert list(config.destinations["back"].objects) == ["findings", "report"] and config.wants_pdf


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected entries"),
        ("- a", "is a list"),
        ("folder: [", "no valid YAML"),
        ("a: &a [*a]", "expected entries|unknown entries|no valid YAML"),
        ("folder: studies", "neither listen nor watch"),
        ("watch: {folder: a}", "lacks folder"),
        (f"{PLAIN}port: 104", "unknown entries port"),
        (f"{PLAIN}1: 104", "expected entries"),
        (f"{PLAIN}watch: {{folder: 7}}", "folder is a whole number"),
        (f"{PLAIN}watch: null", "neither"),
        (f"{PLAIN}retry: null", "retry is null"),
        (f"{PLAIN}retry: {{first_s: 0}}", "first_s .* is 0"),
        (f"{PLAIN}retry: {{longest_s: .nan}}", "longest_s .* is nan"),
        (f"{PLAIN}complete_after_s: -1", "complete_after_s .* is -1"),
        (f"{PLAIN}complete_after_s: yes", "true or false"),
        (f"{PLAIN}delete_done_after_days: -1", "delete_done_after_days"),
        (f"{PLAIN}detection: {{modle: a}}", "unknown entries modle"),
        (f"{PLAIN}detection: {{anonymous: true}}", "anonymous is set"),
        (f"{PLAIN}detection: flair", "detection is text"),
        (f"{PLAIN}series: {{FLAIR: 3}}", "series"),
        (f"{PLAIN}listen: {{ae_title: A}}", "nobody may send"),
        (f"{PLAIN}listen: {{ae_title: A, peers: {{ae_title: B}}}}", "expected a list"),
        (f"{PLAIN}listen: {{ae_title: A, peers: [B]}}", "peers is text"),
        (f"{PLAIN}listen: {{ae_title: ABCDEFGHIJKLMNOPQ, peers: [{{ae_title: B}}]}}", "16 ASCII letters"),
        (f"{PLAIN}listen: {{ae_title: 'A\\B', peers: [{{ae_title: B}}]}}", "no backslash"),
        (f"{PLAIN}listen: {{ae_title: '  ', peers: [{{ae_title: B}}]}}", "16 ASCII letters"),
        (f"{PLAIN}listen: {{ae_title: A, peers: [{{ae_title: B, address: pacs}}]}}", "address is 'pacs'"),
        (f"{PLAIN}listen: {{ae_title: A, peers: [{{ae_title: B}}], port: 99999}}", "port .* is 99999"),
        (f"{PLAIN}listen: {{ae_title: A, peers: [{{ae_title: B}}], port: '104'}}", "port is text"),
        (f"{PLAIN}listen: {{ae_title: A, peers: [{{ae_title: B}}], tls: {{key: a}}}}", "certificate"),
        (f"{PLAIN}destinations: [a]", "destinations is a list"),
        (f"{PLAIN}destinations: {{a: {{}}}}", "none of ae_title, url and folder"),
        (f"{PLAIN}destinations: {{a: {{url: 'http://b', folder: c}}}}", "url and folder"),
        (f"{PLAIN}destinations: {{a: {{url: 'ftp://b'}}}}", "https"),
        (f"{PLAIN}destinations: {{a: {{url: 'http://b', port: 8}}}}", "port do not go with url"),
        (f"{PLAIN}destinations: {{a: {{folder: b, objects: []}}}}", "objects is \\[\\]"),
        (f"{PLAIN}destinations: {{a: {{folder: b, objects: [seg]}}}}", "segmentation, anomaly_map, findings"),
        (f"{PLAIN}destinations: {{a: {{folder: b, objects: findings}}}}", "objects is 'findings'"),
        (f"{PLAIN}destinations: {{a: {{ae_title: B, address: c}}}}", "lacks address or port"),
        (f"{PLAIN}destinations: {{a: {{ae_title: B, address: c, port: 104}}}}", "lacks calling_ae_title"),
        (f"{PLAIN}destinations: {{a: {{ae_title: B, address: c, port: 0, calling_ae_title: D}}}}", "port .* is 0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    lines = dict.fromkeys(text.splitlines())
    if sum(line.startswith("watch:") for line in lines) > 1:  # the later one counts
        del lines["watch: {folder: inbox}"]
    with pytest.raises(InputError, match=said):
        read(tmp_path, "\n".join(lines))


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"folder: \x00", b"[" * 5000, b"a: !!python/object/apply:os.system [x]"]
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_config(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml cannot be read"):
        read_config(tmp_path / "gone.yaml")


def test_pauses_grow_to_the_longest() -> None:
    retry: Any = Retry(first_s=10, longest_s=60)
    assert [retry.pause(tries) for tries in (0, 1, 2, 3, 4, 10_000)] == [10, 10, 20, 40, 60, 60]
