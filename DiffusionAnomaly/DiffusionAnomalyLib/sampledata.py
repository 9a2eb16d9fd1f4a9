"""The sample scan that comes with the extension, offered in Slicer's Sample Data module too. No network is needed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffusion_anomaly.errors import InputError

from .process.environment import MODULE_FOLDER
from .translation import tr as _

FILE = "open-ms-patient26-FLAIR.nii.gz"
SHA256 = "254ab239bdc83119015213af9c533f9af13dbed2b06b9a89fde43226cc4afa2a"
CATEGORY = "DiffusionAnomaly"
NAME = "BrainFLAIR"
NODE = "open-ms patient 26 FLAIR"


def sampleFile() -> Path:
    """The scan: beside the module where the extension is installed, in the repository where it runs from a checkout.

    Raises:
        InputError: when it is in neither.
    """
    folders = (MODULE_FOLDER / "Resources" / "SampleData", MODULE_FOLDER.parent / "Resources" / "SampleData")
    for folder in folders:
        if (folder / FILE).is_file():
            return folder / FILE
    raise InputError(
        _("The sample scan {file} is not there.").format(file=FILE), _("Reinstall the extension, or load a scan.")
    )


def registerSampleData() -> None:
    """Offer the scan in the Sample Data module; without the file there is nothing to offer."""
    import SampleData

    try:
        file = sampleFile()
    except InputError as error:
        logging.warning("%s", error)
        return
    SampleData.SampleDataLogic.registerCustomSampleDataCategory(CATEGORY, title=CATEGORY)
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=NAME,
        thumbnailFileName=str(MODULE_FOLDER / "Resources" / "Icons" / "SampleFLAIR.png"),
        uris=file.as_uri(),
        fileNames=FILE,
        checksums=f"SHA256:{SHA256}",
        nodeNames=NODE,
        loadFileTypes="VolumeFile",  # else the reader of segmentations may take it for label values
    )


def loadSample() -> Any:
    """The scan as a volume node.

    Raises:
        InputError: when it is not there or was changed.
    """
    import SampleData

    logic = SampleData.SampleDataLogic()
    if logic.sourceForSampleName(NAME) is None:  # the module was loaded after Slicer had started
        registerSampleData()
    nodes = logic.downloadSamples(NAME) if logic.sourceForSampleName(NAME) is not None else []
    if not nodes or nodes[0] is None:
        raise InputError(_("The sample scan could not be read."), _("Reinstall the extension, or load a scan."))
    return nodes[0]
