"""Small things that several parts of the panel do with Qt as PythonQt has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import qt

from .qtprocess import QtProcess


@contextmanager
def silent(widget: Any) -> Iterator[None]:
    """The widget tells nobody of what is done to it in the body."""
    blocked = widget.blockSignals(True)
    try:
        yield
    finally:
        widget.blockSignals(blocked)


class Combo:
    """A combo box whose items stand for values.

    Args:
        widget: the ``QComboBox``.
        onChosen: takes the value that the user chose.
    """

    def __init__(self, widget: Any, onChosen: Callable[[Any], None]) -> None:
        self._widget = widget
        self._values: list[Any] = []
        self._titles: list[str] = []
        self._onChosen = onChosen
        widget.connect("currentIndexChanged(int)", self._changed)

    def show(self, items: Sequence[tuple[Any, str]], current: Any) -> None:
        """Offer items of value and title, and show the current one; none if it is not among them."""
        values, titles = [value for value, _ in items], [title for _, title in items]
        with silent(self._widget):
            if titles != self._titles or values != self._values:
                self._values, self._titles = values, titles
                self._widget.clear()
                for title in titles:
                    self._widget.addItem(title)
            self._widget.setCurrentIndex(values.index(current) if current in values else -1)

    def _changed(self, index: int) -> None:
        if 0 <= index < len(self._values):
            self._onChosen(self._values[index])


class Table:
    """A table widget that shows rows of text.

    Args:
        widget: the ``QTableWidget``.
        titles: of the columns.
    """

    def __init__(self, widget: Any, titles: Sequence[str]) -> None:
        self._widget = widget
        self._rows: list[tuple[str, ...]] = []
        widget.setColumnCount(len(titles))
        widget.setHorizontalHeaderLabels(list(titles))
        widget.verticalHeader().setVisible(False)
        widget.horizontalHeader().setStretchLastSection(True)

    def show(self, rows: Sequence[Sequence[str]]) -> None:
        """Show rows; nothing is done when they are shown already."""
        wanted = [tuple(row) for row in rows]
        if wanted == self._rows:
            return
        self._rows = wanted
        with silent(self._widget):
            self._widget.setRowCount(len(wanted))
            for row, texts in enumerate(wanted):
                for column, text in enumerate(texts):
                    self._widget.setItem(row, column, qt.QTableWidgetItem(text))
            self._widget.resizeColumnsToContents()


class Question:
    """Asks a process of the engine and gives the answer, one line of JSON.

    Args:
        command, environment: of the process.
        onAnswer: takes the answer; empty when there was none.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], onAnswer: Callable[[dict[str, Any]], None]
    ) -> None:
        self._onAnswer = onAnswer
        self._said = b""
        self._process = QtProcess()
        self._process.onOutput = self._hear
        self._process.onFinished = self._finished
        try:
            self._process.start(command, environment)
        except OSError:
            onAnswer({})

    def close(self) -> None:
        """Ask no more."""
        self._onAnswer = lambda answer: None
        self._process.kill()

    def _hear(self, data: bytes) -> None:
        self._said += data

    def _finished(self, code: int | None) -> None:
        for line in reversed(self._said.decode("utf-8", "replace").splitlines()):
            try:
                answer = json.loads(line)
            except ValueError:  # something else was printed
                continue
            if isinstance(answer, dict):
                self._onAnswer(answer)
                return
        self._onAnswer({})
