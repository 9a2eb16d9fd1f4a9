"""Everything of a result into one folder, one file after another, and what could not be written and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion_anomaly.errors import EngineError

from ..process.process import WorkerProcess
from . import exporting
from .reporting import Asked, DicomWriting, ReportDrawing
from .results import ResultNodes


def files(folder: Path, name: str) -> dict[str, Path]:
    """Where each kind goes.

    Args:
        folder: of the user's choice.
        name: what the files' names begin with.
    """
    endings = {
        "mask": "-mask.nrrd",
        "mask (NIfTI)": "-mask.nii.gz",
        "anomaly map": "-anomaly-map.nrrd",
        "findings": "-findings.csv",
        "findings (JSON)": "-findings.json",
        "report": "-report.html",
        "report (PDF)": "-report.pdf",
    }
    places = {kind: folder / f"{name}{ending}" for kind, ending in endings.items()}
    return {**places, "DICOM": folder / f"{name}-dicom"}


class ExportAll:
    """Writes them; one that fails does not keep the others from being written.

    Args:
        nodes: the result.
        places: from ``files``.
        temporaryFolder: working folders are made in it.
        makeProcess: gives a new process.
        fileOf: the file of a DICOM instance by its UID; None without a database.
        onFinished: called at the end.

    Attributes:
        written: paths.
        failed: by kind, why.
    """

    def __init__(
        self,
        nodes: ResultNodes,
        places: dict[str, Path],
        temporaryFolder: Path | str,
        makeProcess: Callable[[], WorkerProcess],
        fileOf: Callable[[str], str] | None = None,
        onFinished: Callable[[], None] = lambda: None,
    ) -> None:
        self._nodes, self._places, self._temporary = nodes, places, temporaryFolder
        self._makeProcess, self._fileOf, self._onFinished = makeProcess, fileOf, onFinished
        self.written: list[Path] = []
        self.failed: dict[str, str] = {}
        self.isOver = False
        self._asked: Asked | None = None
        self._steps = self._all()

    def tick(self) -> None:
        """Write the next one; to be called a few times a second."""
        if self.isOver:
            return
        if self._asked is not None and not self._asked.isOver:
            self._asked.tick()
            return
        try:
            next(self._steps)
        except StopIteration:
            self.isOver = True
            self._onFinished()

    def close(self) -> None:
        """Give up."""
        self.isOver = True
        if self._asked is not None:
            self._asked.close()

    def _all(self) -> Iterator[None]:
        nodes, places = self._nodes, self._places
        for kind, save in (
            ("mask", exporting.saveSegmentation),
            ("mask (NIfTI)", exporting.saveSegmentation),
            ("anomaly map", exporting.saveAnomalyMap),
            ("findings", exporting.saveFindings),
            ("findings (JSON)", exporting.saveFindings),
        ):
            try:
                save(nodes, places[kind])
                self.written.append(places[kind])
            except EngineError as error:
                self.failed[kind] = str(error)
            yield
        for kind in ("report", "report (PDF)"):
            yield from self._ask(
                kind, lambda process, kind=kind: ReportDrawing(nodes, places[kind], self._temporary, process)
            )
            if kind not in self.failed:
                self.written.append(places[kind])
        if problem := exporting.problemWithDicom(nodes, self._fileOf):
            self.failed["DICOM"] = problem
        elif self._fileOf is not None:
            series = exporting.dicomFiles(nodes, self._fileOf)
            yield from self._ask(
                "DICOM", lambda process: DicomWriting(nodes, places["DICOM"], series, self._temporary, process)
            )
            if isinstance(self._asked, DicomWriting):
                self.written += self._asked.written

    def _ask(self, kind: str, begin: Callable[[WorkerProcess], Asked]) -> Iterator[None]:
        try:
            self._asked = begin(self._makeProcess())
        except EngineError as error:
            self._asked = None
            self.failed[kind] = str(error)
            return
        yield
        if self._asked.problem:
            self.failed[kind] = self._asked.problem
