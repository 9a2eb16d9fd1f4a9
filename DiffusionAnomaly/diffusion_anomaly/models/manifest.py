"""Reading a model package's files without trusting them.

A package may come from anywhere, so nothing in it is ever executed: JSON is read strictly and may hold none
of the expressions that MONAI's configuration parser would evaluate, a file's name can only point into its
package, and bytes are compared with their SHA256 before anything interprets them. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ModelError
from ..io.typed_json import MAX_BYTES, parse
from ..text import LINES, printable

MANIFEST = "configs/manifest.json"
AGAIN = "The package was changed, cut short or put together by hand; get it again."
NEWER = "It was written for a newer DiffusionAnomaly; update DiffusionAnomaly."

# What is read of a file at most, by what it is. The card and the licences are texts that somebody is shown; weights
# are compared with their network before they are read, so theirs only keeps a sparse file from being taken for some.
MAX_TEXT_BYTES = 1_000_000
MAX_WEIGHTS_BYTES = 16_000_000_000
MAX_FILES = 100
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

_FILE_NAME = re.compile(r"(?:(?:configs|docs|models)/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
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
    if len(found) > 400:  # it quotes the value at fault, which may be a whole table
        found = f"{found[:300]} … {found[-80:]}"
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
    most = _most_bytes(name)
    try:
        # Looked at before it is opened, since opening a pipe waits for its writer and a device may do anything.
        found_kind, size = stat.S_IFMT(os.stat(path).st_mode), os.stat(path).st_size
        if found_kind != stat.S_IFREG:
            fail(package, name, "is no regular file")
        if record is not None and size != record.size:
            fail(package, name, f"has {size} bytes, the manifest says {record.size}")
        if size > most:
            fail(package, name, f"has {size} bytes, more than the {most} that are read of such a file")
        with path.open("rb") as file:
            data = file.read(size + 1)
    except (FileNotFoundError, NotADirectoryError):
        fail(package, name, "is missing")
    except OSError as error:
        fail(package, name, f"cannot be read: {error.strerror}", "Check its permissions and the disk.")
    if len(data) != size:
        fail(package, name, "changed while it was read", "Try again.")
    found = sha256(data)
    if record is not None and found != record.sha256:
        fail(package, name, f"has SHA256 {found[:12]}…, the manifest says {record.sha256[:12]}…")
    return data


def _most_bytes(name: str) -> int:
    if name.endswith(".json"):
        return MAX_BYTES
    return MAX_WEIGHTS_BYTES if name.startswith("models/") else MAX_TEXT_BYTES


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
    if len(files) > MAX_FILES:
        fail(package, MANIFEST, f"lists {len(files)} files, more than the {MAX_FILES} that a package may have")
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
    """A JSON object read strictly, see ``typed_json.parse``, with plain values only.

    Plain means no character that a terminal would obey, and that MONAI's ``ConfigParser`` would evaluate nothing in it:
    no string that begins with ``$`` (expression), ``@`` (reference) or ``%`` (macro), no key that begins with those,
    with ``+`` (merge) or with ``_`` (instruction). The one exception is ``_target_`` at the top, where a network's
    configuration names its class.

    Raises:
        ModelError: naming the place, the number, the key or the string at fault.
    """
    try:
        content = parse(data)
        _check_plain(content, top=True)
    except ValueError as error:
        fail(package, file, f"is not JSON that a package may hold: {error}")
    if not isinstance(content, dict):
        fail(package, file, f"holds a {type(content).__name__} where an object is expected")
    return content


def to_json(content: Mapping[str, Any]) -> bytes:
    """The same bytes for the same content: indented, in the order given, one final newline."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _check_plain(value: object, top: bool = False) -> None:
    if isinstance(value, str):
        _check_text(value)
        if value.lstrip().startswith(_EVALUATED):
            raise ValueError(f"{value[:60]!r} is an expression, and a package is only data")
    elif isinstance(value, list):
        for item in value:
            _check_plain(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            if key.lstrip().startswith((*_EVALUATED, "+", "_")) and not (top and key == "_target_"):
                raise ValueError(f"the key {key[:60]!r} is an instruction, and a package is only data")
            _check_plain(item)


def _check_text(text: str) -> None:
    if printable(text, LINES) != text:
        raise ValueError(f"{text[:60]!r} holds control characters")
