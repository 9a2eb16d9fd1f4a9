"""Method 4, beyond the two papers: a network that has learnt one thing, where in a brain a lesion is.

A restorer has to learn to draw brains before it learns to point at what does not belong there; asked for the place
alone, it learns that several times faster and finds smaller ones. What the bundled ones have seen are healthy brains
with lesions of 2 to 85 mm that a computer put into them, no outline of a real one (synthetic anomalies for
self-supervision: Tan et al. 2022, "Detecting Outliers with Foreign Patch Interpolation", arXiv 2011.04197; Schlüter et
al. 2022, arXiv 2109.15222). A network that has learnt from readers' masks answers alike, and can be packed as a
supervised reference: its card says so. It does not say how the brain would look in health; the restorer does.
"""

from __future__ import annotations

import torch

from ..models.networks import Model
from ..registry import LocaliseOptions
from .base import ProgressCallback, SliceBatch, SliceResult, confine, require_model, to_model_range


class Localise:
    """The probability that a pixel belongs to a lesion."""

    def run(
        self, batch: SliceBatch, model: Model | None, options: LocaliseOptions, progress: ProgressCallback
    ) -> SliceResult:
        """The anomaly score is the probability of a lesion, 0 to 1.

        Raises:
            ModelError: when the model has no localiser.
        """
        model = require_model(model, "localise")
        latent = model.encode(to_model_range(batch.seen.to(model.device, torch.float32)))
        probability = model.decode(model.localise(latent)).sigmoid()
        progress(1)
        anomaly_map = confine(probability[:, 0], batch.brain)
        pixels = batch.brain.sum(dim=(1, 2, 3)).cpu().clamp_min(1)
        return SliceResult(anomaly_map, anomaly_map.sum(dim=(1, 2)) / pixels)

    def network_calls(self, options: LocaliseOptions) -> int:
        return 1
