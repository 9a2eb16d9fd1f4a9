"""Fifty runs and removals, and a few reloads, leave a full Slicer as large as it was."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import qt
import slicer

import panelcase  # as a module: unittest would run an imported case class as well

WARM_UP, RUNS = 10, 50
SHAPE = (64, 96, 96)
# Of 40 runs, each of which has an anomaly map of 2.4 MB, a mask and a segmentation.
MAY_GROW_MB = 40.0


class DiffusionAnomalyMemoryTest(panelcase.PanelCase):
    """Needs no further Python package: the worker is a stand-in."""

    def test_fifty_runs_and_removals_leave_nothing(self) -> None:
        self.useStandIn(seconds=0.05)
        self.addScan("scan")
        slicer.util.updateVolumeFromArray(self.parameters.inputVolume, self.bright())
        for _ in range(WARM_UP):
            self.round()
        before = self.counts()
        for _ in range(RUNS - WARM_UP):
            self.round()
        after = self.counts()
        grown = after.pop("MB") - before.pop("MB")
        assert after.pop("handles", 0) <= before.pop("handles", 0)
        assert after == before
        assert grown < MAY_GROW_MB, f"{grown:.0f} MB more after {RUNS - WARM_UP} runs"

    def test_closed_scenes_leave_nothing(self) -> None:
        self.useStandIn(seconds=0.05)
        sizes = []
        for _ in range(12):
            self.addScan("scan")
            slicer.util.updateVolumeFromArray(self.parameters.inputVolume, self.bright())
            self.run_()
            slicer.mrmlScene.Clear()
            self.settle()
            assert self.panel.detection.queue.entries == []
            sizes.append(self.counts()["MB"])
        assert sizes[-1] - sizes[3] < MAY_GROW_MB

    def test_reloads_leave_no_panel(self) -> None:
        self.widget.onReload()
        self.settle()
        before = self.counts()["widgets"]
        for _ in range(3):
            self.widget.onReload()
            self.settle()
        # Slicer itself only hides the section for developers, where there is one, and its menus.
        assert self.counts()["widgets"] - before < 3 * 20

    def round(self) -> None:
        """Run and remove."""
        self.run_()
        self.panel.results.remove()
        self.panel.detection.queue.clearFinished()
        self.settle()

    @staticmethod
    def bright() -> np.ndarray:
        array = np.full(SHAPE, 20.0, dtype=np.float32)
        array[20:30, 30:50, 40:60] = 100.0
        return array

    def counts(self) -> dict[str, float]:
        """How much there is of what may grow."""
        for _ in range(3):
            gc.collect()
            slicer.app.processEvents()
            # A test is itself called by an event: what waits for its end to be deleted is deleted here.
            qt.QCoreApplication.sendPostedEvents(None, qt.QEvent.DeferredDelete)
        counts: dict[str, float] = {
            "nodes": slicer.mrmlScene.GetNumberOfNodes(),
            "widgets": len(slicer.app.allWidgets()),
            "observations": len(self.widget.Observations),
            "MB": 0.0,
        }
        if Path("/proc/self").exists():
            counts["handles"] = len(os.listdir("/proc/self/fd"))
            counts["MB"] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        return counts
