"""How quick the panel is in a full Slicer: shown, refreshed beside a large scene, and while the threshold moves.

    Slicer --no-splash --testing --additional-module-paths DiffusionAnomaly --python-script Testing/benchmarks/panel.py

``make bench-slicer SLICER=/path/to/Slicer`` does that. The worker is the panel tests' stand-in. Times are of the
processor, best and median of several, since other programs may run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "app"))

import numpy as np
import slicer

import panelcase

SHAPE = (160, 256, 256)  # k j i
OTHER_NODES = 2000
REPEATS = 20


class Bench(panelcase.PanelCase):
    """Borrows what the panel's tests do."""

    def runTest(self) -> None:  # noqa: N802 - unittest's name
        self.report("panel shown", self.shown, 5)
        self.useStandIn()  # it is a new panel
        self.report(f"refresh, {slicer.mrmlScene.GetNumberOfNodes()} nodes", self.panel.refresh)
        scan = self.addScan()
        slicer.util.updateVolumeFromArray(scan, self.blobs())
        nodes = self.run_()
        self.report("refresh with a result", self.panel.refresh)
        size = " x ".join(map(str, reversed(SHAPE)))
        self.report(f"redraw of the slice views, {size}", self.redraw)
        self.report(f"threshold step with redraw, {size}", self.step)
        self.panel.results.show(nodes)
        for number in range(OTHER_NODES):
            slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", f"other {number}")
        self.settle()
        self.report(f"refresh with a result and {OTHER_NODES} other nodes", self.panel.refresh)
        slicer.mrmlScene.Clear()

    def shown(self) -> None:
        """The panel is made anew, as when the module is chosen for the first time."""
        widget = self.widget
        widget.cleanup()
        widget.setup()
        widget.enter()
        slicer.app.processEvents()

    def step(self) -> None:
        slider = self.ui.thresholdSlider
        slider.value = 2.5 if slider.value > 2.75 else 3.0
        self.redraw()

    @staticmethod
    def redraw() -> None:
        for name in slicer.app.layoutManager().sliceViewNames():
            slicer.app.layoutManager().sliceWidget(name).sliceView().forceRender()

    @staticmethod
    def blobs() -> np.ndarray:
        """A head with some tens of bright places of different size."""
        random = np.random.default_rng(0)
        array = np.full(SHAPE, 20.0, dtype=np.float32)
        for centre in random.uniform(0.2, 0.8, (40, 3)) * SHAPE:
            k, j, i = centre.astype(int)
            size = random.integers(3, 12)
            array[k : k + size, j : j + size, i : i + size] = random.uniform(60.0, 100.0)
        return array

    @staticmethod
    def report(name: str, action: Callable[[], object], repeats: int = REPEATS) -> None:
        times = []
        for _ in range(repeats):
            begun = time.process_time()
            action()
            times.append(1000.0 * (time.process_time() - begun))
        said = f"{name}: {min(times):.0f} ms at best, {statistics.median(times):.0f} ms in the median\n"
        sys.stdout.write(said)


if __name__ == "__main__":
    case = Bench()
    case.setUp()
    case.runTest()
    slicer.util.exit()
