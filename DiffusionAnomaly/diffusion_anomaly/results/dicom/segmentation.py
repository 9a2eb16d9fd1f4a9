"""The mask as DICOM Segmentation: binary, a segment a finding, so that viewers list, show and hide them one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription

from .context import CATEGORY, FAMILY, MAKER, PURPOSE, TYPE, short

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from .context import Context

MOST_SEGMENTS = 65535
# In turn, so that neighbours in a viewer's list are told apart.
_COLOURS = [
    CIELabColor.from_string(name)
    for name in ("orangered", "gold", "deepskyblue", "limegreen", "magenta", "cyan", "orange", "violet")
]


def make_segmentation(context: Context) -> Dataset:
    """The segmentation of a result that has findings; segments are numbered as the findings are."""
    model = context.model
    algorithm = AlgorithmIdentificationSequence(
        short(model["name"]), FAMILY, short(model["version"]), MAKER, context.parameters
    )
    segments = []
    for finding in context.result.findings:
        uid, name = context.tracking(finding.id)
        segments.append(
            SegmentDescription(
                finding.id,
                name,
                CATEGORY,
                TYPE,
                SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm,
                tracking_uid=uid,
                tracking_id=name,
                anatomic_regions=[context.region] if context.region else None,
                display_color=_COLOURS[(finding.id - 1) % len(_COLOURS)],
            )
        )
    made = Segmentation(
        context.stand_ins(context.source.has_place),
        context.labels.astype(np.uint16),
        SegmentationTypeValues.BINARY,
        segments,
        content_label="ANOMALIES",
        content_description=PURPOSE,
        **context.common("segmentation", 1, "Anomaly segmentation"),
    )
    return context.finished(made)
