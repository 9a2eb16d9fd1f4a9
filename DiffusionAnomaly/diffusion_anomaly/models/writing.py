"""Writing packages: all in a hidden folder first, checked there, and then renamed into place."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..io.files import write_error
from ..io.outputs import OutputFolder, remove_if_empty
from ..process import uninterrupted
from .declaration import ANOMALY, METADATA, check_anomaly, check_schema, network_file, weights_file
from .manifest import MANIFEST, fail, parse_json, read_manifest, sha256, to_json
from .package import DATA_LICENSE, LICENSE, MODEL_CARD, SCHEMA_VERSION, Bundle, open_bundle
from .verification import check_files, check_networks, verify

if TYPE_CHECKING:
    from torch import Tensor

_AT_FDCWD = -100  # paths from the current folder
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


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
    complete: bool = False,
) -> Bundle:
    """Write a package, check it, and only then put it in place of the one that was there.

    Where the system can exchange two folders in one step (Linux, macOS), a kill at any moment leaves the old package or
    the new one.

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
        complete: whether it must pass ``verify`` too, before it takes its place.

    Returns:
        The package in place, opened.

    Raises:
        ModelError: when the declaration is at fault, the weights do not fit it or are not finite, or
            ``directory`` holds something that is not a package. What was there before is then untouched.
    """
    directory = Path(directory)
    if not may_replace(directory):
        raise ModelError(
            f"{str(directory)!r} holds something else than a model package.",
            "Choose another folder, or move what is there away.",
        )
    head = {"schema_version": SCHEMA_VERSION, "name": name, "version": version, "method": method}
    declared = {**head, **anomaly, **head, "networks": list(networks)}
    content = _declaration(name, declared, metadata, networks) | _weights(name, networks)
    for file, text in ((MODEL_CARD, model_card), (DATA_LICENSE, data_license), (LICENSE, license_text)):
        content[file] = (text.strip() + "\n").encode()
    records = {file: {"sha256": sha256(data), "size": len(data)} for file, data in sorted(content.items())}
    content[MANIFEST] = to_json({"schema_version": SCHEMA_VERSION, "files": records})

    with outputs_beside(directory) as workshop:
        new = workshop / directory.name
        for file, data in content.items():
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            (new / file).write_bytes(data)
        written = open_bundle(new)
        if complete:
            verify(written)
        else:
            check_files(written)
            check_networks(written)
        with uninterrupted():
            _put_in_place(new, directory)
    return open_bundle(directory)


@contextmanager
def outputs_beside(directory: Path) -> Iterator[Path]:
    """A hidden folder beside a package's place, so that a half-written one is never listed and renaming is atomic.

    What killed runs left there is taken away first.

    Raises:
        InputError: when it cannot be made or written to, or another run writes the same package.
    """
    prefix = f".{directory.name}-"
    with OutputFolder(directory.parent / f"{prefix}unfinished") as workshop:
        for leftover in workshop.path.iterdir():
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            yield workshop.path
        except OSError as error:
            raise write_error(directory, error) from error
        finally:
            with uninterrupted():
                for made in workshop.path.iterdir():
                    shutil.rmtree(made, ignore_errors=True)
                remove_if_empty(workshop.path)  # also one that a killed run made


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
    check_anomaly(name, parse_json(content[ANOMALY], name, ANOMALY), configs)
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


def may_replace(directory: Path) -> bool:
    """Whether nothing but a package as it was written, or an empty folder, would be lost."""
    if not os.path.lexists(directory):
        return True
    if directory.is_symlink() or not directory.is_dir():
        return False
    there = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    if not there:
        return True
    try:
        files, _ = read_manifest(directory, directory.name, SCHEMA_VERSION)
    except ModelError:
        return False
    unchanged = all(
        (directory / name).is_file() and sha256((directory / name).read_bytes()) == record.sha256
        for name, record in files.items()
        if name in there
    )
    return unchanged and there <= {MANIFEST, *files}


def _put_in_place(new: Path, place: Path) -> None:
    """Move ``new`` to ``place``, and what was there to ``new``, in one step where the system can."""
    if not place.exists():
        os.replace(new, place)
    elif not _exchange(new, place):
        aside = new.with_name("previous")
        os.replace(place, aside)
        try:
            os.replace(new, place)
        except OSError:
            os.replace(aside, place)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    name, arguments = {
        "linux": ("renameat2", (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE)),
        "darwin": ("renamex_np", (os.fsencode(one), os.fsencode(other), _EXCHANGE)),
    }.get(sys.platform, ("", ()))
    rename = getattr(ctypes.CDLL(None), name, None) if name else None
    return rename is not None and rename(*arguments) == 0
