"""The tissues of a head, as label maps with FreeSurfer's and SynthSeg's numbers tell them apart."""

from __future__ import annotations

# FreeSurfer numbers of tissue inside the brain, grouped by what shares an intensity on MR.
BRAIN_GROUPS: dict[str, tuple[int, ...]] = {
    "white matter": (2, 41, 85, 30, 62),
    "cortex": (3, 42),
    "ventricle": (4, 5, 14, 15, 43, 44, 72),
    "cerebellar white matter": (7, 46),
    "cerebellar cortex": (8, 47),
    "thalamus": (10, 49),
    "caudate, putamen, accumbens": (11, 12, 26, 50, 51, 58),
    "pallidum, ventral diencephalon": (13, 28, 52, 60),
    "brain stem": (16,),
    "hippocampus, amygdala": (17, 18, 53, 54),
    "lesion": (25, 57, 136, 137, 163, 164),
}
# SynthSeg's numbers outside the brain that have a name of their own here; the rest are soft tissue.
OUTSIDE = {24: 12, 515: 13, 511: 14, 516: 15, 507: 16}
TISSUES = {name: number for number, name in enumerate(BRAIN_GROUPS, start=1)} | {
    "fluid": 12,
    "skull": 13,
    "skin": 14,
    "marrow": 15,
    "soft tissue": 16,
    "other": 17,
}
"""Number of each tissue; 0 is air."""
RIM = len(TISSUES) + 1
"""White matter along the ventricles, normally a little brighter than elsewhere; in maps for slabs alone."""

# By name, the tissues that share white and grey matter's intensities.
WHITE = ("white matter", "cerebellar white matter", "brain stem", "pallidum, ventral diencephalon")
GREY = ("cortex", "cerebellar cortex", "thalamus", "caudate, putamen, accumbens", "hippocampus, amygdala")
FLUID = ("ventricle", "fluid")
