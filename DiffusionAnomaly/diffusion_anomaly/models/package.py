"""Opening and listing packages: the declaration is read, the weights wait until somebody asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..text import LINES, printable
from .declaration import ANOMALY, BRAIN, METADATA, NAMES, OBJECTS, check_declaration, network_file, weights_file
from .manifest import MANIFEST, FileRecord, check_version, fail, parse_json, read_listed, read_manifest

if TYPE_CHECKING:
    import SimpleITK as sitk
    from torch import Tensor

    from ..io.orientation import Orientation
    from ..preprocessing.intensity import Normalisation
    from ..preprocessing.slices import Grid

SCHEMA_VERSION = 1
LICENSE = "LICENSE"
DATA_LICENSE = "docs/data_license.txt"
MODEL_CARD = "docs/README.md"


@dataclass(frozen=True)
class Bundle:
    """An opened model package.

    >>> bundle = open_bundle("flair-unsupervised")  # doctest: +SKIP
    >>> bundle.method, bundle.grid.size  # doctest: +SKIP
    ('unsupervised', (128, 128))

    Attributes:
        path: the package's folder.
        name, version, method, modality: as ``anomaly.json`` declares.
        license: short identifier of the weights' licence, such as ``CC-BY-NC-SA-4.0``.
        metadata: the content of ``configs/metadata.json``, MONAI's keys.
        anomaly: the content of ``configs/anomaly.json``.
        sha256: of the manifest, which holds every other file's, so it stands for the whole package.
        files: what the manifest records, by file name relative to ``path``.
    """

    path: Path
    name: str
    version: str
    method: str
    modality: str
    license: str
    metadata: dict[str, Any] = field(repr=False)
    anomaly: dict[str, Any] = field(repr=False)
    sha256: str
    files: Mapping[str, FileRecord] = field(repr=False)

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts with weights, of codec, diffusion, classifier and brain."""
        return tuple(self.anomaly["networks"])

    @property
    def channels(self) -> tuple[str, ...]:
        """The contrasts the networks see, in this order; a package that names none sees its modality alone."""
        return tuple(self.anomaly.get("channels", (self.modality,)))

    @property
    def region(self) -> str:
        """What of a scan is looked at: one of ``declaration.REGIONS``; packages that do not say look at the brain."""
        return str(self.anomaly.get("region", BRAIN))

    def orientation_of(self, image: sitk.Image) -> Orientation:
        """Which of an image's axes are slices, rows and columns: axial slices, or the image as it is stored."""
        from ..io.orientation import Orientation

        return Orientation.stored(image) if self.anomaly.get("orientation") == "any" else Orientation.of(image)

    @property
    def grid(self) -> Grid:
        """The slice grid the networks were trained on."""
        from ..preprocessing.slices import Grid

        declared = self._declared("grid")
        return Grid(**{"spacing": None, **declared, "size": tuple(declared["size"])})

    @property
    def normalisation(self) -> Normalisation:
        """The intensity rule the networks were trained with."""
        from ..preprocessing.intensity import normalisation_from_dict

        return normalisation_from_dict(self._declared("normalisation"))

    @property
    def license_text(self) -> str:
        """The full licence of the weights."""
        return self._text(LICENSE)

    @property
    def data_license(self) -> str:
        """What the training data's licence asks for."""
        return self._text(DATA_LICENSE)

    @property
    def model_card(self) -> str:
        """What the model is, how it was made and what it was measured to do, as Markdown."""
        return self._text(MODEL_CARD)

    def network_config(self, part: str) -> dict[str, Any]:
        """The class and the arguments of one network, after the whole declaration has passed the schemas.

        Raises:
            ModelError: when the package has no such part, or its declaration is at fault.
        """
        self._check_part(part)
        return dict(self._checked_configs[part])

    def check(self) -> None:
        """Check the whole declaration against the schemas, which nobody has looked at when a package is opened.

        Raises:
            ModelError: for the first fault, naming the file and the place in it.
        """
        _ = self._checked_configs

    def weights(self, part: str, most_bytes: int | None = None) -> dict[str, Tensor]:
        """One network's tensors on the CPU, as stored (mostly float16).

        The bytes whose hash is compared are the bytes that are parsed.

        Args:
            part: the network.
            most_bytes: how large the file can be; None for a network that nobody has built.

        Raises:
            ModelError: when the file is missing or changed, is larger, is not safetensors, or holds another type than
                float16, bfloat16, float32 or int64, or a value that is not finite.
        """
        from .weights import read_tensors

        self._check_part(part)
        file = weights_file(part)
        record = self.files.get(file)
        if record is not None and most_bytes is not None and record.size > most_bytes:
            fail(self.name, file, f"has {record.size} bytes, its network cannot fill more than {most_bytes}")
        return read_tensors(self._bytes(file), self.name, file)

    @cached_property
    def _checked_configs(self) -> dict[str, dict[str, Any]]:
        """All networks' configurations, read and checked once for however many networks are loaded."""
        configs = {name: self._json(network_file(name)) for name in self.networks}
        check_declaration(self.name, self.anomaly, self.metadata, configs)
        return configs

    def _check_part(self, part: str) -> None:
        if part not in self.networks:
            found = ", ".join(self.networks)
            fail(self.name, ANOMALY, f"declares no network {part}, only {found}", "Choose another package.")

    def _declared(self, key: str) -> dict[str, Any]:
        declared = self.anomaly.get(key)
        if not isinstance(declared, dict):
            fail(self.name, ANOMALY, f"declares no {key}", "Choose a package of another method.")
        return declared

    def _bytes(self, name: str) -> bytes:
        return read_listed(self.path, self.name, name, self.files)

    def _text(self, name: str) -> str:
        return printable(self._bytes(name).decode(errors="replace"), LINES)

    def _json(self, name: str) -> dict[str, Any]:
        return parse_json(self._bytes(name), self.name, name)


@dataclass(frozen=True)
class BundleSummary:
    """One line of a list of models.

    Attributes:
        modality, orientation: what the model expects.
        spacing: of its grid in mm; 0 when unknown.
        license: short identifier of the weights' licence.
        quality: measured numbers by name.
        size_mb: of all files, in 10^6 bytes.
        problem: why the package cannot be opened; empty when it can.
    """

    name: str
    path: Path
    version: str = ""
    method: str = ""
    modality: str = ""
    orientation: str = ""
    spacing: float = 0.0
    license: str = ""
    quality: Mapping[str, Any] = field(default_factory=dict)
    size_mb: float = 0.0
    problem: str = ""


def builtin_directory() -> Path:
    """The folder of the packages that travel with the engine."""
    return Path(__file__).parents[1] / "bundles"


def available(extra: Sequence[Path | str] = ()) -> list[BundleSummary]:
    """The built-in packages, then those of ``extra``: package folders, or folders that hold packages.

    A package that cannot be opened is listed with its problem, so that the user learns of it.
    """
    return [summary for folder in (builtin_directory(), *map(Path, extra)) for summary in _summaries(folder)]


def open_bundle(name_or_path: str | Path) -> Bundle:
    """Read a package's declaration.

    Fast: only JSON is read, and compared with the manifest. ``verify`` checks everything.

    Args:
        name_or_path: the name of a built-in package, or a package's folder. The name wins where both exist.

    Raises:
        ModelError: when there is no such package, or its declaration is damaged, foreign or newer.
    """
    root = _locate(name_or_path)
    package = root.name
    files, digest = read_manifest(root, package, SCHEMA_VERSION)
    anomaly = parse_json(read_listed(root, package, ANOMALY, files), package, ANOMALY)
    check_version(anomaly, package, ANOMALY, SCHEMA_VERSION)
    metadata = parse_json(read_listed(root, package, METADATA, files), package, METADATA)
    networks = anomaly.get("networks")
    if not isinstance(networks, list) or not all(isinstance(part, str) for part in networks):
        fail(package, ANOMALY, "has no list of networks")
    for key in OBJECTS & anomaly.keys():  # the rest waits for the schemas, but this is looked into before
        if not isinstance(anomaly[key], dict):
            fail(package, ANOMALY, f"has {key} {anomaly[key]!r}, expected an object")
    return Bundle(
        path=root,
        name=_text(package, ANOMALY, anomaly, "name"),
        version=_text(package, ANOMALY, anomaly, "version"),
        method=_text(package, ANOMALY, anomaly, "method"),
        modality=_text(package, ANOMALY, anomaly, "modality"),
        license=_text(package, METADATA, metadata, "license"),
        metadata=metadata,
        anomaly=anomaly,
        sha256=digest,
        files=files,
    )


def _locate(name_or_path: str | Path) -> Path:
    known = {path.name: path for path in _packages(builtin_directory())}
    if isinstance(name_or_path, str) and name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    choose = f"Choose one of {', '.join(known)}, or a package's folder." if known else "Give a package's folder."
    # os.path, because pathlib raises for a name that no file can have.
    if not os.path.exists(path):
        is_name = isinstance(name_or_path, str) and len(path.parts) == 1
        raise ModelError(f"{'Unknown model' if is_name else 'There is no model package at'} {str(path)!r}.", choose)
    if not os.path.isdir(path):
        raise ModelError(f"{str(path)!r} is a file; a model package is a folder.", choose)
    if not os.path.lexists(path / MANIFEST):
        raise ModelError(f"{str(path)!r} is not a model package: {MANIFEST} is missing.", choose)
    # Absolute, so that a later change of the working directory does not matter, and "." has a name.
    return path.resolve()


def _summaries(folder: Path) -> Iterator[BundleSummary]:
    try:
        paths = _packages(folder)
    except OSError as error:
        problem = ModelError(f"{folder} cannot be read: {error.strerror}.", "Check its permissions and the disk.")
        yield BundleSummary(name=printable(folder.name), path=folder, problem=str(problem))
        return
    yield from map(_summarise, paths)


def _packages(folder: Path) -> list[Path]:
    # os.path, because pathlib raises for folders that may not be looked into, and one must not hide the others.
    if os.path.lexists(folder / MANIFEST):
        return [folder]
    if not os.path.isdir(folder):
        return []
    children = sorted(path for path in folder.iterdir() if os.path.isdir(path))
    return [path for path in children if not path.name.startswith((".", "__"))]


def _text(package: str, file: str, content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value:
        fail(package, file, f"has {key} {value!r}, expected a text")
    if not NAMES[key].fullmatch(value):
        fail(package, file, f"has {key} {value!r}, expected {NAMES[key].pattern}")
    return value


def _summarise(path: Path) -> BundleSummary:
    try:
        bundle = open_bundle(path)
    except ModelError as error:
        return BundleSummary(name=printable(path.name), path=path, problem=str(error))
    # No schema has seen these yet, and one odd package must not hide the others.
    spacing = bundle.anomaly.get("grid", bundle.anomaly.get("grid3d", {})).get("spacing")
    orientation = bundle.anomaly.get("orientation")
    return BundleSummary(
        name=bundle.name,
        path=bundle.path,
        version=bundle.version,
        method=bundle.method,
        modality=bundle.modality,
        orientation=orientation if isinstance(orientation, str) else "",
        spacing=float(spacing) if isinstance(spacing, int | float) else 0.0,
        license=bundle.license,
        quality=bundle.anomaly.get("quality", {}),
        size_mb=sum(record.size for record in bundle.files.values()) / 1e6,
    )
