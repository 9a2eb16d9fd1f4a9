"""Writing packages: all in a hidden folder first, checked there, and then renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .declaration import ANOMALY, METADATA, check_method, check_schema, network_file, weights_file
from .manifest import MANIFEST, fail, parse_json, sha256, to_json
from .package import DATA_LICENSE, LICENSE, MODEL_CARD, SCHEMA_VERSION, Bundle, open_bundle
from .verification import check_files, check_networks

if TYPE_CHECKING:
    from torch import Tensor


def write_bundle(
    directory: Path,
    *,
    name: str,
    version: str,
    method: str,
    networks: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Tensor]]],
    anomaly: Mapping[str, Any],
    metadata: Mapping[str, Any],
    model_card: str,
    data_license: str,
    license_text: str,
) -> Bundle:
    """Write a package, check it, and only then put it in place of the one that was there.

    The same arguments give the same bytes. A package without calibration can be written and loaded, because
    calibrating needs that, but does not pass ``verify``.

    Args:
        directory: the package's own folder, such as ``bundles/flair-unsupervised``.
        name, version, method: go into ``anomaly.json``.
        networks: for each part its configuration and its state dict. Floats are stored as float16, except for
            a tensor with values beyond float16's range.
        anomaly: the rest of ``anomaly.json``: grid, normalisation, schedule, calibration and so on.
        metadata: what only the author knows of MONAI's keys; see ``metadata.complete_metadata``.
        model_card, data_license, license_text: the content of the package's three texts.

    Returns:
        The package in place, opened.

    Raises:
        ModelError: when the declaration is at fault, the weights do not fit it or are not finite, or
            ``directory`` holds something that is not a package. What was there before is then untouched.
    """
    directory = Path(directory)
    if not _may_replace(directory):
        raise ModelError(f"{str(directory)!r} holds something else than a model package.", "Choose another folder.")
    head = {"schema_version": SCHEMA_VERSION, "name": name, "version": version, "method": method}
    declared = {**head, **anomaly, **head, "networks": list(networks)}
    content = _declaration(name, declared, metadata, networks) | _weights(name, networks)
    for file, text in ((MODEL_CARD, model_card), (DATA_LICENSE, data_license), (LICENSE, license_text)):
        content[file] = (text.strip() + "\n").encode()
    records = {file: {"sha256": sha256(data), "size": len(data)} for file, data in sorted(content.items())}
    content[MANIFEST] = to_json({"schema_version": SCHEMA_VERSION, "files": records})

    directory.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, so that a half-written package is never listed; beside its place, so that renaming is atomic.
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as temporary:
        new = Path(temporary) / directory.name
        for file, data in content.items():
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            (new / file).write_bytes(data)
        written = open_bundle(new)
        check_files(written)
        check_networks(written)
        _replace(new, directory, Path(temporary) / "previous")
    return open_bundle(directory)


def _declaration(
    name: str,
    anomaly: Mapping[str, Any],
    metadata: Mapping[str, Any],
    networks: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Tensor]]],
) -> dict[str, bytes]:
    from .metadata import complete_metadata

    configs = {part: config for part, (config, _) in networks.items()}
    content = {ANOMALY: _encode(name, ANOMALY, anomaly)}
    # First, because the metadata is derived from it.
    check_method(name, parse_json(content[ANOMALY], name, ANOMALY), configs)
    content[METADATA] = _encode(name, METADATA, complete_metadata(metadata, anomaly, configs))
    check_schema(name, METADATA, "metadata", parse_json(content[METADATA], name, METADATA))
    for part, config in configs.items():
        content[network_file(part)] = _encode(name, network_file(part), config)
    return content


def _encode(name: str, file: str, content: Mapping[str, Any]) -> bytes:
    try:
        return to_json(content)
    except (TypeError, ValueError) as error:
        fail(name, file, f"cannot be written: {error}", "Give plain, finite values.")


def _weights(name: str, networks: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Tensor]]]) -> dict[str, bytes]:
    from .weights import write_tensors

    return {weights_file(part): write_tensors(state, name, weights_file(part)) for part, (_, state) in networks.items()}


def _may_replace(directory: Path) -> bool:
    """Whether nothing but a package, or an empty folder, would be lost."""
    if not directory.exists() or (directory / MANIFEST).is_file():
        return True
    return directory.is_dir() and not any(directory.iterdir())


def _replace(new: Path, place: Path, aside: Path) -> None:
    """Move ``new`` to ``place``; what was there goes aside, and comes back if the move fails."""
    if not place.exists():
        os.replace(new, place)
        return
    os.replace(place, aside)
    try:
        os.replace(new, place)
    except OSError:
        os.replace(aside, place)
        raise
    shutil.rmtree(aside)
