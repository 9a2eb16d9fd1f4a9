"""Which file holds which contrast of a scan: as the user says, or found in a folder by names.

Only names are looked at here; whether an image shows the contrast that its name promises is for the recogniser.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..text import printable
from .dicom import series_of
from .formats import suffix_of
from .volume import Volume, read_volume

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr")
_LISTED = 12


def _words(upper: str) -> frozenset[str]:
    return frozenset(re.split(r"[^A-Z0-9+]+", upper)) - {""}


# Words of names, in capitals. What is no scan, or a contrast that looks like T1 or T2 by another word of its name.
_NO_SCANS = _words("MASK MASKS SEG DSEG PROBSEG LABEL LABELS LABELMAP LESION LESIONS ROI TUMOR TUMOUR HEAT")
_OTHERS = _words(
    "DWI ADC DTI DIFF DIFFUSION TRACE EP2D SWI SWAN T2STAR T2S GRE HEMO MRA MRV TOF ANGIO PERF PWI DSC DCE ASL CBF CBV "
    "BOLD FMRI MAP T1MAP T2MAP T1RHO LOCALIZER LOCALISER SCOUT SURVEY SUB SUBTRACTION"
)
_T1_SEQUENCES = _words("MPRAGE MP2RAGE SPGR FSPGR BRAVO VIBE TFL3D")
_AGENT = _words(
    "GD GAD GADO GADOLINIUM DOTAREM GADAVIST GADOVIST MAGNEVIST PROHANCE POST POSTCONTRAST POSTGD POSTGAD CE CONTRAST "
    "ENHANCED KM C+ +C +GD +KM MDC"
)
_AGENT_ENDINGS = _words("C CE GD GAD KM POST + +C +GD +KM WC WCE WGD")
_NO_AGENT = _words("PRE WITHOUT WO NATIVE NATIV NONCONTRAST NONENHANCED UNENHANCED NOCONTRAST")
_NO_AGENT_PHRASE = re.compile(r"W/O|\bNON[ _-]|\bNO[ _-]CON")
_SUBJECT = re.compile(r"(?:^|[_/\\])sub-([A-Za-z0-9]+)")


@dataclass(frozen=True)
class ChannelSource:
    """Where one channel comes from.

    Attributes:
        path: a file, or a folder with DICOM.
        which: of a 4-D or vector file the number of the volume, from 0; of a DICOM folder the series, by UID or
            description; None where there is one only.
    """

    path: Path
    which: str | None = None

    @classmethod
    def parse(cls, text: str) -> ChannelSource:
        """``PATH``, or ``PATH:WHICH`` where the whole text is no path and what stands before the colon is one."""
        path, colon, which = text.rpartition(":")
        if colon and path and which and not Path(text).exists() and Path(path).exists():
            return cls(Path(path), which)
        return cls(Path(text))

    def read(self) -> Volume:
        """The volume.

        Raises:
            InputError: as ``read_volume`` does, and for a number that is none.
        """
        if self.which is None:
            return read_volume(self.path)
        if self.path.is_dir():
            return read_volume(self.path, series=self.which)
        if not self.which.isascii() or not self.which.isdigit():
            raise InputError(
                f"{printable(self.path)} is a file; {self.which[:40]!r} is no number of a volume in it.",
                "Write FILE:0 for the first volume of a 4-D file.",
            )
        return read_volume(self.path, frame=int(self.which))

    def __str__(self) -> str:
        return printable(self.path) + ("" if self.which is None else f":{self.which}")


def match_names(given: Iterable[str], names: Sequence[str], model: str) -> dict[str, str]:
    """The user's names of channels by the model's own, in its order.

    Args:
        given: names as the user writes them, whatever their case or usual spelling (``t1gd`` for ``T1C``).
        names: the channels that the model declares.
        model: its name, for messages.

    Raises:
        InputError: for a name that the model does not know, and for a channel that is given twice or is missing.

    >>> match_names(["t1gd", "flair"], ["FLAIR", "T1C"], "glioma")
    {'FLAIR': 'flair', 'T1C': 't1gd'}
    """
    found: dict[str, str] = {}
    knows = f"the model {model} knows {', '.join(names)}."
    for name in given:
        declared = declared_name(name, names)
        if declared is None:
            raise InputError(f"There is no channel {name[:40]!r}; {knows}", "Give each of its channels, by its name.")
        if declared in found:
            twice = "twice" if name == found[declared] else f"twice, as {found[declared]} and {name}"
            raise InputError(f"The channel {declared} is given {twice}; {knows}", "Give each of its channels once.")
        found[declared] = name
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"The channel{'s' if len(missing) > 1 else ''} {' and '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing; {knows}",
            "Give each of its channels, by its name.",
        )
    return {name: found[name] for name in names}


def require_different(found: Mapping[str, ChannelSource]) -> None:
    """Refuse one file or series for two channels.

    Raises:
        InputError: naming both channels.
    """
    seen: dict[tuple[Path, str | None], str] = {}
    for name, source in found.items():
        other = seen.setdefault((source.path.resolve(), source.which), name)
        if other != name:
            raise InputError(
                f"The channels {other} and {name} are both {source}.", "Give the file of each contrast, each once."
            )


def declared_name(name: str, names: Sequence[str]) -> str | None:
    """The model's name for a channel: the same in any case, or the only one of the same contrast."""
    for declared in names:
        if declared.casefold() == name.strip().casefold():
            return declared
    contrast = contrast_of(name)
    alike = [declared for declared in names if contrast is not None and contrast_of(declared) == contrast]
    return alike[0] if len(alike) == 1 else None


def volumes_in_order(path: Path, names: Sequence[str]) -> dict[str, ChannelSource]:
    """The volumes of a 4-D or vector file as channels, in the model's order, because the user says so.

    Raises:
        InputError: when the file holds more volumes than the model has channels.
    """
    try:
        read_volume(path, frame=len(names))
    except InputError:  # it has no such volume, as it should be; what else is wrong shows when the first one is read
        return {name: ChannelSource(path, str(number)) for number, name in enumerate(names)}
    raise InputError(
        f"{printable(path)} holds more volumes than the {len(names)} channels of the model ({', '.join(names)}).",
        f"Choose them one by one: --channel {names[0]}={printable(path)}:0, and so on.",
    )


def find_channels(folder: Path, names: Sequence[str]) -> dict[str, ChannelSource]:
    """The files or DICOM series of a folder that a model's channels are, by their names.

    A BIDS subject or session is looked through in its folder ``anat``; another folder with image files in it alone; in
    all others DICOM series are told apart by their descriptions.

    Raises:
        InputError: when a contrast is not there or several could be it, with a list of what is there.
    """
    if not folder.is_dir():
        raise InputError(
            f"{printable(folder)} is one file, but the model needs {', '.join(names)} together.",
            f"Give --channel {names[0]}=FILE and so on, a folder that holds all of them, or --channels-from FILE when "
            "the volumes of one file are the channels in this order.",
        )
    candidates = _files(_one_subject(folder)) or _series(folder)
    found, missing = {}, []
    for name in names:
        alike = [source for label, source in candidates if _is(label, name)]
        if len(alike) > 1:
            listed = "; ".join(label for label, source in candidates if source in alike)
            raise InputError(
                f"{printable(folder)} holds {len(alike)} images that could be {name}: {listed}.",
                f"Choose one: --channel {name}=…, and the other channels likewise.",
            )
        if alike:
            found[name] = alike[0]
        else:
            missing.append(name)
    if missing:
        listed = "; ".join(label for label, _ in candidates[:_LISTED]) or "no image"
        more = f"; and {len(candidates) - _LISTED} more" if len(candidates) > _LISTED else ""
        raise InputError(
            f"{printable(folder)} holds nothing whose name says {' or '.join(missing)}; it holds {listed}{more}.",
            f"Name the files: --channel {missing[0]}=…, and the other channels likewise.",
        )
    require_different(found)
    return found


def described(found: Mapping[str, ChannelSource]) -> str:
    """What was taken for which channel, for the user to check."""
    parts = (f"{name} is {source.which or printable(source.path.name)}" for name, source in found.items())
    return f"The channels were found by name: {', '.join(parts)}."


def contrast_of(text: str) -> str | None:
    """The contrast that a file's name, a series' description or a channel's name speaks of.

    Returns:
        FLAIR, T1, T1C (with contrast agent), T2 or PD; None for all else, also for masks, maps and diffusion.

    >>> [contrast_of(name) for name in ("t2_tirm_tra_dark-fluid", "T1w", "ax T1 +C", "t1_mprage_pre", "t2f", "T2*")]
    ['FLAIR', 'T1', 'T1C', 'T1', 'FLAIR', None]
    """
    upper = _SUBJECT.sub("", text).upper()
    words = _words(upper)
    joined = "".join(re.findall(r"[A-Z0-9]", upper))
    if words & (_NO_SCANS | _OTHERS) or "T2*" in upper or {"T2", "STAR"} <= words:
        return None
    t1 = bool(words & _T1_SEQUENCES) or any(word.startswith("T1") for word in words)
    t2 = any(word.startswith("T2") for word in words)
    if "FLAIR" in joined or "DARKFLUID" in joined or "T2F" in words:
        if t2 or not t1:
            return "FLAIR"
    elif t2 and not t1:
        return "T2"
    if not t1:
        return "PD" if words & {"PD", "PDW", "PROTON"} else None
    agent = bool(words & _AGENT) or any(word[2:] in _AGENT_ENDINGS for word in words if word.startswith("T1"))
    without = bool(words & _NO_AGENT) or _NO_AGENT_PHRASE.search(upper) is not None
    return "T1C" if agent and not without else "T1"


def subject_of(path: str) -> str:
    """The subject in a BIDS name; empty where there is none."""
    found = _SUBJECT.findall(path)
    return found[-1] if found else ""


def _is(label: str, name: str) -> bool:
    """Whether a file or series is the channel: by its contrast, or where none is known by its name's words."""
    contrast = contrast_of(name)
    return contrast_of(label) == contrast if contrast else _words(name.upper()) <= _words(label.upper())


def _one_subject(folder: Path) -> Path:
    """The folder of a BIDS session's or subject's images; the folder itself where it is none.

    Raises:
        InputError: when it holds several subjects or sessions.
    """
    for prefix, meaning in (("sub-", "subjects"), ("ses-", "sessions")):
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.startswith(prefix))
        if len(inside) > 1:
            listed = ", ".join(path.name for path in inside[:_LISTED])
            raise InputError(f"{printable(folder)} holds {len(inside)} {meaning}: {listed}.", "Give the folder of one.")
        folder = inside[0] if inside else folder
    return folder / "anat" if (folder / "anat").is_dir() else folder


def _files(folder: Path) -> list[tuple[str, ChannelSource]]:
    """The image files of a folder, each with its name."""
    return [
        (path.name[: -len(suffix_of(path))], ChannelSource(path))
        for path in sorted(folder.iterdir())
        if suffix_of(path) in _SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]


def _series(folder: Path) -> list[tuple[str, ChannelSource]]:
    """The DICOM series below a folder, each with its description; localisers and what is derived left out."""
    return [
        (series.description or "a series without description", ChannelSource(folder, series.uid))
        for series in series_of(folder)
        if series.scanned and series.uid
    ]
