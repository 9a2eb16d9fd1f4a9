"""The command that serves, up to where it listens: tokens, what it refuses, and its log."""

from __future__ import annotations

import logging
import re
import stat
import sys
from pathlib import Path

import pytest

from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.cli import serve
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.server.listening import TOKENS
from diffusion_anomaly.server.tokens import Tokens


def test_tokens_are_made_listed_and_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "server"
    assert cli.main(["serve", str(folder), "--new-token", "anna"]) == 0
    token = capsys.readouterr().out.strip()
    user = Tokens(folder / TOKENS).user_of(token)
    assert user is not None and user.name == "anna"
    assert token not in (folder / TOKENS).read_text(encoding="ascii")
    assert cli.main(["serve", str(folder), "--new-token", "anna"]) == InputError.exit_code
    assert "has a token already" in capsys.readouterr().err
    assert cli.main(["serve", str(folder), "--list-tokens"]) == 0
    assert capsys.readouterr().out.split() == ["anna"]
    assert cli.main(["serve", str(folder), "--revoke", "anna"]) == 0
    assert Tokens(folder / TOKENS).user_of(token) is None
    assert cli.main(["serve", str(folder), "--revoke", "anna"]) == InputError.exit_code
    assert "Nobody called anna" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--new-token", "anna", "--list-tokens"], "exclude each other"),
        (["--new-token", "../anna"], "is no name for a token"),
        (["--key", "key.pem"], "belong together"),
        (["--certificate", "nowhere.pem", "--key", "nowhere.pem"], "are no certificate and its key"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert cli.main(["serve", str(tmp_path / "server"), *options]) == InputError.exit_code
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "server").iterdir())


def test_a_server_does_not_begin_with_tokens_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography", reason="needs the extra serve")
    (tmp_path / TOKENS).write_text('{"tokens": [', encoding="ascii")
    for options in (["--port", "0", "--device", "cpu"], ["--list-tokens"]):
        assert cli.main(["serve", str(tmp_path), *options]) == InputError.exit_code
        said = capsys.readouterr()
        assert "tokens.json cannot be read" in said.err and not said.out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_every_file_of_the_log_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_LOG_BYTES", 200)
    with serve._logged(tmp_path / "server.log"):
        for number in range(20):
            logging.getLogger("diffusion_anomaly.server").info("job %d of anna", number)
    files = sorted(tmp_path.iterdir())
    assert len(files) == serve._LOG_FILES
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    newest = re.findall(r"job \d+ of anna", (tmp_path / "server.log").read_text(encoding="utf-8"))
    assert newest[-1] == "job 19 of anna"


@pytest.mark.parametrize(
    ("address", "shown", "everywhere"),
    [
        ("0.0.0.0", "https://gpu-7:", True),
        ("127.0.0.1", "https://127.0.0.1:", False),
        ("localhost", "https://localhost:", False),
    ],
)
def test_an_address_is_printed_that_can_be_opened(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    shown: str,
    everywhere: bool,
) -> None:
    pytest.importorskip("cryptography", reason="needs the extra serve")

    async def stop(*arguments: object) -> None:
        """At once."""

    monkeypatch.setattr("socket.gethostname", lambda: "gpu-7")
    monkeypatch.setattr("diffusion_anomaly.server.listening.serve", stop)
    options = ["--address", address, "--port", "0", "--device", "cpu", "--model", "flair-intensity"]
    assert cli.main(["serve", str(tmp_path / "server"), *options]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(shown)
    assert ("every address of this machine" in said.err) == everywhere
