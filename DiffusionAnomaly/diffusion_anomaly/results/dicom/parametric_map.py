"""The anomaly map as DICOM Parametric Map: the scores as 32-bit floats, with what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from highdicom import VOILUTTransformation
from highdicom.pm import DerivedPixelContrastValues, ImageFlavorValues, ParametricMap, RealWorldValueMapping
from pydicom.sr.codedict import codes

from ...models.declaration import BRAIN, HEAD
from .context import PURPOSE, SCORE

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from .context import Context


def make_parametric_map(context: Context) -> Dataset:
    """The parametric map of a result; a frame a slice."""
    scores = sitk.GetArrayFromImage(context.result.anomaly_map).astype(np.float32)
    top = max(float(scores.max()), 1.5 * context.result.threshold)
    mapping = RealWorldValueMapping(
        "ANOMALY_SCORE",
        "-log10 of the healthy tail probability",
        codes.UCUM.NoUnits,
        (0.0, top),
        1.0,
        0.0,
        quantity_definition=SCORE,
    )
    made = ParametricMap(
        context.stand_ins(in_space=True),  # which a parametric map must lie in
        scores,
        contains_recognizable_visual_features=context.result.provenance.get("region", BRAIN) == HEAD,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(top / 2, top)],
        content_label="ANOMALY_MAP",
        content_description=PURPOSE,
        image_flavor=ImageFlavorValues.VOLUME,
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        **context.common("anomaly map", 2, "Anomaly map"),
    )
    data = context.finished(made)
    header = context.source.header
    # Whether a part is one of a pair, only the source can say: it is there, empty, where nothing else tells.
    if "BodyPartExamined" not in data or (header.get("BodyPartExamined") and header.get("Laterality")):
        data.Laterality = header.get("Laterality")
    # What is burnt into a picture may stand out in its map.
    data.BurnedInAnnotation = header.get("BurnedInAnnotation") or "NO"
    return data
