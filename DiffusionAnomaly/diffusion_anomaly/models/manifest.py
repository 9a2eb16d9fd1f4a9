"""Reading a model package's files without trusting them.

A package may come from anywhere, so nothing in it is ever executed: JSON is read strictly and may hold none
of the expressions that MONAI's configuration parser would evaluate, a file's name can only point into its
package, and bytes are compared with their SHA256 before anything interprets them. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ModelError

MANIFEST = "configs/manifest.json"
AGAIN = "The package was changed, cut short or put together by hand; get it again."
NEWER = "It was written for a newer DiffusionAnomaly; update DiffusionAnomaly."

# The largest JSON of a real package is its calibration table, tens of kilobytes.
MAX_JSON_BYTES = 8_000_000
PICKLES = frozenset(
    {
        ".bin",
        ".ckpt",
        ".joblib",
        ".npy",
        ".npz",
        ".pickle",
        ".pkl",
        ".pt",
        ".pt2",
        ".pth",
        ".torchscript",
        ".ts",
    }
)

_FILE_NAME = re.compile(r"(?:(?:configs|docs|models)/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EVALUATED = ("$", "@", "%")  # MONAI's expressions, references and macros


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says about one file: its SHA256 in hexadecimal and its size in bytes."""

    sha256: str
    size: int


def fail(package: str, file: str, what: str, hint: str = AGAIN) -> NoReturn:
    """Raise the one-line error that every fault of a package ends in."""
    found = " ".join(what.split())
    raise ModelError(f"Package {package}: {file} {found}.", hint)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def inside(root: Path, package: str, name: str) -> Path:
    """The path of ``name``, which must not lead out of the package, by links or otherwise.

    Raises:
        ModelError: when it does, or when its links go in a circle.
    """
    path = root / name
    try:
        leads_out = not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        leads_out = True
    if leads_out:
        fail(package, name, "is a link that leads out of the package", "A package holds its files itself.")
    return path


def read_file(root: Path, package: str, name: str, record: FileRecord | None = None) -> bytes:
    """The bytes of one file, after comparing them with the manifest's record of it.

    Raises:
        ModelError: when the file is missing, leads out of the package, cannot be read, or is not as recorded.
    """
    path = inside(root, package, name)
    if not path.is_file():
        fail(package, name, "is missing")
    try:
        size = path.stat().st_size
        if record is not None and size != record.size:
            fail(package, name, f"has {size} bytes, the manifest says {record.size}")
        data = path.read_bytes()
    except OSError as error:
        fail(package, name, f"cannot be read: {error.strerror}", "Check its permissions and the disk.")
    found = sha256(data)
    if record is not None and found != record.sha256:
        fail(package, name, f"has SHA256 {found[:12]}…, the manifest says {record.sha256[:12]}…")
    return data


def read_listed(root: Path, package: str, name: str, files: Mapping[str, FileRecord]) -> bytes:
    """``read_file`` for a file that the manifest must list."""
    if name not in files:
        fail(package, MANIFEST, f"does not list {name}")
    return read_file(root, package, name, files[name])


def read_manifest(root: Path, package: str, newest: int) -> tuple[dict[str, FileRecord], str]:
    """The recorded files, and the SHA256 of the manifest, which stands for the whole package.

    Args:
        newest: the highest ``schema_version`` that this version reads.

    Raises:
        ModelError: when the manifest is missing, broken, newer, or lists a file that a package may not hold.
    """
    data = read_file(root, package, MANIFEST)
    manifest = parse_json(data, package, MANIFEST)
    check_version(manifest, package, MANIFEST, newest)
    files = manifest.get("files")
    if set(manifest) != {"schema_version", "files"} or not isinstance(files, dict):
        fail(package, MANIFEST, "must hold schema_version and files, and nothing else")
    return {name: _record(package, name, entry) for name, entry in files.items()}, sha256(data)


def check_version(content: Mapping[str, Any], package: str, file: str, newest: int) -> None:
    """Refuse what a later version wrote, before anything else in it can be misread."""
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        fail(package, file, f"has schema_version {version!r}, expected a whole number from 1 to {newest}")
    if version > newest:
        fail(package, file, f"has schema_version {version}, this version reads up to {newest}", NEWER)


def _record(package: str, name: str, entry: object) -> FileRecord:
    if Path(name).suffix.lower() in PICKLES:
        fail(package, MANIFEST, f"lists {name!r}, a format that can run code when loaded", "Use safetensors.")
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
        fail(package, MANIFEST, f"lists {name!r}, which is no file of the package, its configs, docs or models")
    if not isinstance(entry, dict) or set(entry) != {"sha256", "size"}:
        fail(package, MANIFEST, f"must give sha256 and size for {name}, and nothing else")
    digest, size = entry["sha256"], entry["size"]
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        fail(package, MANIFEST, f"gives a sha256 for {name} that is not 64 lower-case hexadecimal digits")
    if type(size) is not int or size < 0:
        fail(package, MANIFEST, f"gives {name} the size {size!r}, expected a number of bytes")
    return FileRecord(digest, size)


def parse_json(data: bytes, package: str, file: str) -> dict[str, Any]:
    """A JSON object read strictly: UTF-8, finite numbers, no repeated keys, and plain values only.

    Plain means that MONAI's ``ConfigParser`` would evaluate nothing in it: no string that begins with ``$``
    (expression), ``@`` (reference) or ``%`` (macro), no key that begins with those, with ``+`` (merge) or
    with ``_`` (instruction). The one exception is ``_target_`` at the top, where a network's configuration
    names its class.

    Raises:
        ModelError: naming the place, the number, the key or the string at fault.
    """
    if len(data) > MAX_JSON_BYTES:
        fail(package, file, f"has {len(data)} bytes, more than the {MAX_JSON_BYTES} that are read as JSON")
    try:
        content = json.loads(data.decode(), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
        _check_plain(content, top=True)
    except (ValueError, RecursionError) as error:
        fail(package, file, f"is not JSON that a package may hold: {error}")
    if not isinstance(content, dict):
        fail(package, file, f"holds a {type(content).__name__} where an object is expected")
    return content


def to_json(content: Mapping[str, Any]) -> bytes:
    """The same bytes for the same content: indented, in the order given, one final newline."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return content


def _check_plain(value: object, top: bool = False) -> None:
    if isinstance(value, str) and value.lstrip().startswith(_EVALUATED):
        raise ValueError(f"{value[:60]!r} is an expression, and a package is only data")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large for a float")
    if isinstance(value, list):
        for item in value:
            _check_plain(item)
    if isinstance(value, dict):
        for key, item in value.items():
            if key.lstrip().startswith((*_EVALUATED, "+", "_")) and not (top and key == "_target_"):
                raise ValueError(f"the key {key[:60]!r} is an instruction, and a package is only data")
            _check_plain(item)
