"""What is remembered from one Slicer to the next, beside the scene: a few texts by name."""

from __future__ import annotations

import json
from typing import Any, Protocol

GROUP = "DiffusionAnomaly"


class Settings(Protocol):
    """Where texts are kept."""

    def value(self, name: str) -> str:
        """The text of that name; empty when there is none."""
        ...

    def setValue(self, name: str, text: str) -> None:
        """Keep a text."""
        ...


class MemorySettings:
    """Settings that are forgotten with the process: for scripts without an application."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def value(self, name: str) -> str:
        return self._texts.get(name, "")

    def setValue(self, name: str, text: str) -> None:
        self._texts[name] = text


class ApplicationSettings:
    """Slicer's own settings file of the user."""

    def value(self, name: str) -> str:
        import slicer

        return str(slicer.app.userSettings().value(f"{GROUP}/{name}", "") or "")

    def setValue(self, name: str, text: str) -> None:
        import slicer

        slicer.app.userSettings().setValue(f"{GROUP}/{name}", text)


def defaultSettings() -> Settings:
    """The application's where there is one."""
    import slicer

    return ApplicationSettings() if getattr(slicer, "app", None) is not None else MemorySettings()


def readJson(settings: Settings, name: str, default: Any) -> Any:
    """A value kept as JSON; the default when there is none or it is damaged."""
    try:
        value = json.loads(settings.value(name) or "null")
    except ValueError:  # edited by hand, or cut short
        return default
    return value if isinstance(value, type(default)) else default


def writeJson(settings: Settings, name: str, value: Any) -> None:
    """Keep a value as JSON."""
    settings.setValue(name, json.dumps(value))
