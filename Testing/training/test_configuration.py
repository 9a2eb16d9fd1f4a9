"""Configuration files: what a base gives, what a file's own entries replace, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from training.trainer.configuration import ConfigurationError, read_yaml


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")

    days: int
    towns: list[str] = []
    costs: dict[str, Any] = {}


def write(path: Path, **entries: Any) -> Path:
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return path


def test_a_file_says_what_differs_from_its_base_and_the_base_of_that(tmp_path: Path) -> None:
    first = write(
        tmp_path / "first.yaml", days=2, towns=["Oslo", "Bergen"], costs={"bed": {"one": 1, "two": 2}, "bus": 3}
    )
    second = write(tmp_path / "second.yaml", base=str(first), days=4, costs={"bed": {"two": 5}})
    third = write(tmp_path / "third.yaml", base=str(second), towns=["Bodø"], costs={"bus": None})
    assert read_yaml(third, Trip) == Trip(days=4, towns=["Bodø"], costs={"bed": {"one": 1, "two": 5}, "bus": None})
    assert read_yaml(first, Trip).days == 2


def test_a_base_is_a_path_from_where_the_command_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs" / "first.yaml", days=2)
    second = write(tmp_path / "configs" / "second.yaml", base="configs/first.yaml")
    monkeypatch.chdir(tmp_path)
    assert read_yaml(second, Trip).days == 2


def test_a_circle_of_bases_is_named(tmp_path: Path) -> None:
    write(tmp_path / "first.yaml", base=str(tmp_path / "second.yaml"), days=2)
    second = write(tmp_path / "second.yaml", base=str(tmp_path / "first.yaml"))
    with pytest.raises(ConfigurationError, match=r"second\.yaml is a base of itself"):
        read_yaml(second, Trip)


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read"), ("days: [", "is not valid YAML")])
def test_a_base_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "first.yaml").write_text(text, encoding="utf-8")
    second = write(tmp_path / "second.yaml", base=str(tmp_path / "first.yaml"), days=2)
    with pytest.raises(ConfigurationError, match=rf"first\.yaml {message}"):
        read_yaml(second, Trip)


def test_a_wrong_entry_of_a_base_is_named_with_the_file_that_was_asked_for(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", days=2, weeks=1)
    second = write(tmp_path / "second.yaml", base=str(first))
    with pytest.raises(ConfigurationError, match=r"second\.yaml: weeks: Extra inputs are not permitted"):
        read_yaml(second, Trip)
