"""From a study in the queue to its results: with one detector, which stays loaded."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from ..cohort.tasks import DISK_FULL, INTERNAL, PASSING, failure_of
from ..detection.detector import Detector
from ..detection.scan import Silent, run_scan
from ..errors import Cancelled, EngineError, InputError, ModelError
from ..text import counted
from .choosing import choose_sources, request_of
from .config import Retry
from .instances import identify
from .patience import Patience
from .store import DONE, QUEUE, SENDING, Job, Store, digest_of

log = logging.getLogger(__name__)

# A study that ends the program so often, as by its memory, is not begun again; nor one that fails so often for a reason
# that is the program's own, or its machine's.
MOST_STARTS = 3


class Looker:
    """Does the studies in the queue one by one.

    Args:
        detector: what to detect with.
        store: where the studies are.
        series: for a contrast the description that its series has.
        retry: when a detection that failed for something that may pass is tried again.
        pdf: whether the report is written as a DICOM object too.

    Raises:
        InputError: when ``series`` names a contrast that the model does not know.
    """

    def __init__(
        self, detector: Detector, store: Store, series: Mapping[str, str], retry: Retry, pdf: bool = False
    ) -> None:
        known = {name.casefold() for name in detector.plan.channels}
        if unknown := [name for name in series if name.casefold() not in known]:
            raise InputError(
                f"The model {detector.plan.bundle.name} does not know {', '.join(unknown)}, which series names.",
                f"It knows {', '.join(detector.plan.channels)}.",
            )
        self._detector, self._store, self._series, self._retry, self._pdf = detector, store, series, retry, pdf
        self._patience = Patience(retry)

    def look(self) -> bool:
        """Do the next study; False when there is none to be done now.

        Raises:
            Cancelled: when the user stopped it; the study is where it was.
            ModelError: when the model package cannot be used, which no study can help.
        """
        waiting = self._store.jobs(QUEUE)
        for job in waiting:
            if job.record.not_before <= time.time() and self._patience.allows(job.name):
                with self._patience.trying(job.name):
                    self._look_at(job, waiting)
                return True
        return False

    def _look_at(self, job: Job, waiting: Sequence[Job]) -> None:
        if self._store.again(job):
            log.info("%s was moved back into the queue", job.name)
        if any(other.record.study == job.record.study for other in waiting[waiting.index(job) + 1 :]):
            self._end(job, "More of the study came before it was looked at.")
        else:
            self._do(job)

    def _do(self, job: Job) -> None:
        record = job.record
        start = time.perf_counter()
        try:
            if record.starts >= MOST_STARTS:
                raise InputError(
                    f"The program ended {record.starts} times while it looked at this study.",
                    "Memory is the usual reason. Move the folder back to queue/ to try it again.",
                )
            record.starts += 1
            job.save()
            if not self._detect(job):
                return
        except (KeyboardInterrupt, Cancelled):
            record.starts = 0
            job.save()
            raise
        except ModelError:
            record.starts = 0
            job.save()
            raise
        except Exception as error:  # noqa: BLE001 - one study never stops the others
            self._failed(job, error)
            return
        record.starts = record.tries = 0
        record.since = record.not_before = 0.0
        record.deliveries = {}  # of results that were made before, where somebody has moved it back here
        job.save()
        self._store.move(job, SENDING)
        log.info("%s: looked at in %.0f s", job.name, time.perf_counter() - start)

    def _detect(self, job: Job) -> bool:
        """Whether there are results to send."""
        channels = self._detector.plan.channels
        sources, series, notes = choose_sources(job.images, channels, self._series)
        for note in notes:
            log.warning("%s: %s", job.name, note)
        used = {}
        for one in series.values():
            for file in one.files:
                found = identify(file.path)
                if found is not None:
                    used[found.uid] = found.digest
        made_of = digest_of(used)
        earlier = self._store.jobs(SENDING, DONE, study=job.record.study)
        if any(other.record.made_of == made_of for other in earlier):
            self._end(job, "The series that the model looks at is as it was; its results are there.")
            return False
        for name, one in series.items():
            log.info("%s: %s is series %s (%s)", job.name, name, one.uid, counted(one.images, "image"))
        request = request_of(job.record.study, job.images, sources, job.results, overwrite=True, pdf=self._pdf)
        result, _ = run_scan(self._detector, request, Silent())
        job.record.made_of = made_of
        # Warnings may show what a header says of the series; they are in the report.
        warned = f", {counted(len(result.warnings), 'warning')}" if result.warnings else ""
        log.info("%s: %s%s", job.name, counted(len(result.findings), "finding"), warned)
        return True

    def _failed(self, job: Job, error: Exception) -> None:
        failure = failure_of(error)
        record, now = job.record, time.time()
        record.starts = 0
        record.since = record.since or now
        may_pass = failure.kind in {*PASSING, DISK_FULL} and now - record.since < 3600 * self._retry.give_up_after_h
        if may_pass or (failure.kind == INTERNAL and record.tries < MOST_STARTS - 1):
            record.tries += 1
            record.not_before = now + self._retry.pause(record.tries)
            log.error("%s: %s; tried again in %.0f s", job.name, failure.what, record.not_before - now)
            job.save()
            return
        reason = error if isinstance(error, EngineError) else EngineError(failure.what, failure.hint)
        self._store.quarantine(job, reason)
        log.error("%s: put into quarantine: %s", job.name, failure.what)

    def _end(self, job: Job, note: str) -> None:
        job.record.note, job.record.starts = note, 0
        job.save()
        self._store.move(job, DONE)
        log.info("%s: %s", job.name, note)
