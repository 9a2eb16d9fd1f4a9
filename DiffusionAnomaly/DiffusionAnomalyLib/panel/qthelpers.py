"""Small things that several parts of the panel do with Qt as PythonQt has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import qt
import slicer

from ..progresstext import plain, shortened

LONGEST_IN_CELL = 24
LONGEST_WRAPPED, MOST_LINES = 60, 3  # of a narrow column

WRAPPED_MARGIN = 4  # pixels of a cell above and below its text, together


@contextmanager
def silent(widget: Any) -> Iterator[None]:
    """The widget tells nobody of what is done to it in the body."""
    blocked = widget.blockSignals(True)
    try:
        yield
    finally:
        widget.blockSignals(blocked)


def say(label: Any, text: str) -> None:
    """Show a text; without one, the label takes no room."""
    label.setText(text)
    label.setVisible(bool(text))


def fitSlices(names: Iterable[str]) -> None:
    """Let slice views of these names, where there are such, show the whole of what they show."""
    manager = slicer.app.layoutManager()
    for widget in map(manager.sliceWidget, names) if manager is not None else ():
        if widget is not None:
            widget.fitSliceToBackground()


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
        rowsShown: the table is as high as its rows are, up to so many; None leaves its height to the form.
        wide: columns that share the room that is left, and whose texts are wrapped to a few lines; by default the last
            one alone, which is not.
    """

    def __init__(
        self, widget: Any, titles: Sequence[str], rowsShown: int | None = None, wide: Sequence[int] = ()
    ) -> None:
        self._widget = widget
        self._rows: list[tuple[str, ...]] = []
        self._rowsShown = rowsShown
        self._longest = dict.fromkeys(wide, LONGEST_WRAPPED) or {len(titles) - 1: None}
        widget.setColumnCount(len(titles))
        widget.setHorizontalHeaderLabels(list(titles))
        widget.verticalHeader().setVisible(False)
        for column in range(len(titles)):
            mode = qt.QHeaderView.Stretch if column in self._longest else qt.QHeaderView.ResizeToContents
            widget.horizontalHeader().setSectionResizeMode(column, mode)
        if wide:
            lines = widget.verticalHeader()
            lines.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
            lines.setMaximumSectionSize(MOST_LINES * widget.fontMetrics().height() + WRAPPED_MARGIN)

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
                    # A long text would push the other columns, or the other rows, out of sight.
                    longest = self._longest.get(column, LONGEST_IN_CELL)
                    item = qt.QTableWidgetItem(text if longest is None else shortened(text, longest))
                    item.setToolTip(plain(text))
                    self._widget.setItem(row, column, item)
        if self._rowsShown is not None:
            height = self._widget.verticalHeader().defaultSectionSize * min(len(wanted), self._rowsShown)
            frame = 2 * self._widget.frameWidth
            self._widget.setFixedHeight(self._widget.horizontalHeader().sizeHint.height() + height + frame)
