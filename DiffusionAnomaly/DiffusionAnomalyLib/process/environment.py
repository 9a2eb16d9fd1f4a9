"""How the worker is started: Slicer's own Python, with the engine on its path, in Slicer's start-up environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

MODULE_FOLDER = Path(__file__).resolve().parents[2]


def pythonProgram() -> str:
    """``PythonSlicer`` of this Slicer; without one, as with ``slicer-core``, the Python that runs."""
    import slicer

    app = getattr(slicer, "app", None)
    if app is not None:
        suffix = ".exe" if sys.platform == "win32" else ""
        program = Path(app.slicerHome, "bin", f"PythonSlicer{suffix}")
        if program.is_file():
            return str(program)
    return shutil.which("PythonSlicer") or sys.executable


def workerCommand() -> list[str]:
    """The worker's command line, without the job's folder."""
    return [pythonProgram(), "-m", "diffusion_anomaly.worker"]


def workerEnvironment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The worker's environment.

    Args:
        base: what to start from; None for the environment that Slicer itself was started in, because the launcher sets
            its own up again.
    """
    if base is None:
        import slicer

        inSlicer = getattr(slicer, "app", None) is not None
        base = slicer.util.startupEnvironment() if inSlicer else os.environ
    environment = dict(base)
    path = [str(MODULE_FOLDER), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    environment["PYTHONUTF8"] = "1"  # the log's letters do not depend on a locale
    return environment
