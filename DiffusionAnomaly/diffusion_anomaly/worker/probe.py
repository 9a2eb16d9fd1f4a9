"""Questions that Slicer asks a process of its own, because only that one may import torch and matplotlib.

    python -m diffusion_anomaly.worker.probe machine       what is installed, and where a network can run
    python -m diffusion_anomaly.worker.probe verify DIR    whether a model package is whole and fits its networks
    python -m diffusion_anomaly.worker.probe report DIR    a report at another threshold, see ``results.redrawing``
    python -m diffusion_anomaly.worker.probe dicom DIR     DICOM objects of a result, see ``results.dicom.again``
    python -m diffusion_anomaly.worker.probe compare DIR   what changed between the exams in DIR/prior and DIR/current

The answer is one line of JSON on standard output, also to a question that cannot be answered.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from ..system import processor_name, versions

# What a detection imports, by the name that it imports.
NEEDED = (
    "numpy",
    "scipy",
    "SimpleITK",
    "pydicom",
    "torch",
    "monai",
    "einops",
    "safetensors",
    "jsonschema",
    "jinja2",
    "matplotlib",
    "nibabel",
    "nrrd",
)


def main(arguments: list[str]) -> int:
    """Answer one question; returns the exit code."""
    if arguments == ["machine"]:
        answer = machine()
    elif len(arguments) == 2 and arguments[0] == "verify":
        answer = verify(Path(arguments[1]))
    elif len(arguments) == 2 and arguments[0] == "report":
        answer = report(Path(arguments[1]))
    elif len(arguments) == 2 and arguments[0] == "dicom":
        answer = dicom(Path(arguments[1]))
    elif len(arguments) == 2 and arguments[0] == "compare":
        answer = compare(Path(arguments[1]))
    else:
        questions = "machine | {verify | report | dicom | compare} DIR"
        sys.stderr.write(f"usage: python -m diffusion_anomaly.worker.probe {questions}\n")
        return 2
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def machine() -> dict[str, Any]:
    """What is installed here, and where a network can run.

    Returns:
        ``problems``: for each package that cannot be imported, why; ``versions``; ``devices``: ``id``, ``name``, and
        for a GPU ``free_mb`` and ``total_mb``. The CPU is always the first.
    """
    problems = {}
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a broken build of torch raises OSError, RuntimeError and others
            problems[name] = f"{type(error).__name__}: {error}"
    devices = [{"id": "cpu", "name": processor_name()}]
    if "torch" not in problems:
        devices += _gpus()
    return {"problems": problems, "versions": versions(), "devices": devices}


def verify(folder: Path) -> dict[str, Any]:
    """Whether a model package is whole: ``ok``, ``name``, ``method``, ``version``, and ``problem`` if it is not."""
    from ..models.package import open_bundle
    from ..models.verification import verify as verify_bundle

    try:
        bundle = open_bundle(folder)
        verify_bundle(bundle)
    except Exception as error:  # noqa: BLE001 - whatever it is, the one who asked waits for an answer
        return _refusal(error)
    return {"ok": True, "name": bundle.name, "method": bundle.method, "version": bundle.version, "problem": ""}


def report(folder: Path) -> dict[str, Any]:
    """Draw the report that ``folder`` asks for: ``ok``, ``path``, and ``problem`` if it could not be drawn."""
    from ..results.redrawing import redraw

    try:
        path = redraw(folder)
    except Exception as error:  # noqa: BLE001 - as above
        return _refusal(error)
    return {"ok": True, "path": str(path), "problem": ""}


def dicom(folder: Path) -> dict[str, Any]:
    """Write DICOM objects of a result: ``ok``, ``files`` by kind, and ``problem`` if they could not be made."""
    from ..results.dicom.again import write_again

    try:
        written = write_again(folder)
    except Exception as error:  # noqa: BLE001 - as above
        return _refusal(error)
    return {"ok": True, "files": {kind: str(path) for kind, path in written.items()}, "problem": ""}


def compare(folder: Path) -> dict[str, Any]:
    """Compare two exams: ``ok``, ``files`` by name, the comparison's ``statistics``, and ``problem`` if that failed.

    Args:
        folder: holds ``prior`` and ``current``, each as for a report; gets the comparison's files.
    """
    from ..io.outputs import OutputFolder
    from ..results.comparison import files
    from ..results.comparison.reading import compare_requests

    try:
        comparison = compare_requests(folder / "prior", folder / "current")
        with OutputFolder(folder) as output:
            written = files.save(comparison, output)
    except Exception as error:  # noqa: BLE001 - as above
        return _refusal(error)
    paths = {name: str(path) for name, path in written.items()}
    return {"ok": True, "files": paths, "statistics": files.statistics(comparison), "problem": ""}


def _refusal(error: Exception) -> dict[str, Any]:
    from ..system import as_engine_error

    return {"ok": False, "problem": str(as_engine_error(error, "Please report it."))}


def _gpus() -> list[dict[str, Any]]:
    """The GPUs that this build of torch can use; none when the driver does not answer."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append({"id": f"cuda:{index}", "name": name, "free_mb": free // 2**20, "total_mb": total // 2**20})
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
