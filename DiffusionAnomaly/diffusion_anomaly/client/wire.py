"""What travels between client and server, and nothing else can: voxels, where they lie, and options.

There is no field for a name, a file or a DICOM element, and what the server stores is written from these fields, so
that no file that a client made is ever parsed.

Needs the standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import Cancelled, DiskFull, EngineError, InputError, MemoryExhausted, ModelError
from ..io.typed_json import checked, kind_of
from ..options import shown
from ..text import printable

WIRE_VERSION = 1
PREFIX = "/v1"
QUEUED = "queued"
"""Event that only a server sends: ``ahead``, how many jobs go first."""
VARIABLES = tuple(f"DIFFUSION_ANOMALY_{name}" for name in ("SERVER", "TOKEN", "FINGERPRINT", "AUTHORITIES"))
"""Of a client's environment: address, token, fingerprint of the certificate, or who may sign it."""
SCAN, MASK = "scan", "mask"
MOST_INPUTS = 16
MOST_ALONG_AXIS = 8192
MOST_NAME = 64
# NumPy's name of a voxel's type, little-endian; MetaImage's name, and its bytes.
TYPES = {
    "int8": ("MET_CHAR", 1),
    "uint8": ("MET_UCHAR", 1),
    "int16": ("MET_SHORT", 2),
    "uint16": ("MET_USHORT", 2),
    "int32": ("MET_INT", 4),
    "uint32": ("MET_UINT", 4),
    "float32": ("MET_FLOAT", 4),
    "float64": ("MET_DOUBLE", 8),
}
# Of `planning.Options`: what the client may choose. Device and batch size are the server's, names stay with the client.
OPTIONS = (
    *("steps", "preset", "precision", "seed", "threshold", "min_volume_ml", "min_area", "peak_margin"),
    *("slice_spacing", "overrides", "keep_reconstruction", "force", "register"),
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ERRORS = {kind.code: kind for kind in (InputError, DiskFull, ModelError, MemoryExhausted, Cancelled)}


@dataclass(frozen=True)
class ImageHeader:
    """An image that is sent: its voxels follow, x fastest, little-endian.

    Attributes:
        kind: ``scan`` or ``mask``.
        channel: contrast of a scan; empty for a model of one.
        type: of a voxel, see ``TYPES``.
        size: voxels along x, y and z.
        spacing: mm along each.
        origin: mm, LPS.
        direction: 3 x 3, row by row.
        sha256: of the voxels' bytes.
    """

    kind: str
    channel: str
    type: str
    size: list[int]
    spacing: list[float]
    origin: list[float]
    direction: list[float]
    sha256: str

    def check(self, where: str) -> None:
        """Refuse what is no image.

        Raises:
            InputError: naming the entry.
        """
        if self.kind not in (SCAN, MASK):
            raise InputError(f"{where}: kind is {shown(self.kind)}.", f"It is {SCAN} or {MASK}.")
        if len(self.channel) > MOST_NAME or printable(self.channel) != self.channel:
            raise InputError(f"{where}: channel is no name of a contrast.", "Give the name that the model has for it.")
        if self.type not in TYPES:
            raise InputError(f"{where}: type is {shown(self.type)}.", f"It is one of {', '.join(TYPES)}.")
        if not _SHA256.fullmatch(self.sha256):
            raise InputError(f"{where}: sha256 is {shown(self.sha256)}.", "It is 64 hexadecimal digits.")
        for name, length in (("size", 3), ("spacing", 3), ("origin", 3), ("direction", 9)):
            values = getattr(self, name)
            if len(values) != length or not all(_is_number(value, whole=name == "size") for value in values):
                raise InputError(f"{where}: {name} is {shown(values)}.", f"It is {length} finite numbers.")
        if not all(1 <= extent <= MOST_ALONG_AXIS for extent in self.size):
            raise InputError(f"{where}: size is {self.size}.", f"It is 1 to {MOST_ALONG_AXIS} voxels along an axis.")

    @property
    def bytes(self) -> int:
        """Of the voxels."""
        return math.prod(self.size) * TYPES[self.type][1]

    def metaimage(self) -> bytes:
        """The header of a MetaImage file of these voxels: it keeps every grid exactly."""
        lines = {
            "ObjectType": "Image",
            "NDims": "3",
            "BinaryData": "True",
            "BinaryDataByteOrderMSB": "False",
            "CompressedData": "False",
            # MetaImage goes column by column.
            "TransformMatrix": _text([self.direction[3 * row + column] for column in range(3) for row in range(3)]),
            "Offset": _text(self.origin),
            "CenterOfRotation": "0 0 0",
            "ElementSpacing": _text(self.spacing),
            "DimSize": " ".join(str(int(extent)) for extent in self.size),
            "ElementType": TYPES[self.type][0],
            "ElementDataFile": "LOCAL",
        }
        return "".join(f"{key} = {value}\n" for key, value in lines.items()).encode("ascii")


@dataclass(frozen=True)
class Order:
    """A detection that is asked for.

    Attributes:
        inputs: headers of the images, in the order in which they are sent.
        method: None for the model's.
        model: name of one that the server offers; None for the method's default.
        model_sha256: refuses a package of that name that is not this one; empty where any will do.
        options: of ``planning.Options``, see ``OPTIONS``.
        version: of this format.
    """

    inputs: list[ImageHeader]
    method: str | None = None
    model: str | None = None
    model_sha256: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = WIRE_VERSION

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def bytes(self) -> int:
        """Of all voxels."""
        return sum(header.bytes for header in self.inputs)


def order_of(content: Any) -> Order:
    """An order read from JSON, checked.

    Raises:
        InputError: for what is none.
    """
    if not isinstance(content, dict):
        raise InputError(f"The order is {kind_of(content)}, expected a JSON object.", "Send an order.")
    if content.get("version", WIRE_VERSION) != WIRE_VERSION:
        raise InputError(
            f"The order has version {shown(content['version'])}, this server reads {WIRE_VERSION}.",
            "Client and server are of different versions; update both.",
        )
    order: Order = checked(Order, content, "The order")
    headers = []
    if not 1 <= len(order.inputs) <= MOST_INPUTS:
        raise InputError(f"The order has {len(order.inputs)} inputs.", f"Send 1 to {MOST_INPUTS} images.")
    for number, entry in enumerate(order.inputs):
        where = f"Input {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is {kind_of(entry)}, expected an object.", "Send the image's header.")
        header = checked(ImageHeader, entry, where)
        header.check(where)
        headers.append(header)
    scans = [header for header in headers if header.kind == SCAN]
    names = [header.channel for header in scans]
    if not scans or len(headers) - len(scans) > 1 or len(set(names)) < len(names) or (len(names) > 1 and "" in names):
        raise InputError(
            "The order's inputs are no scan.", "Send one image, or each channel once by its name, and at most one mask."
        )
    unknown = sorted(order.options.keys() - set(OPTIONS))
    if unknown:
        raise InputError(
            f"A server takes no option {', '.join(name[:MOST_NAME] for name in unknown[:10])}.",
            f"It takes {', '.join(OPTIONS)}.",
        )
    return Order(headers, order.method, order.model, order.model_sha256, order.options)


def error_of(code: str, what: str, hint: str = "") -> EngineError:
    """The error that a failure at the other end stands for."""
    return _ERRORS.get(code, EngineError)(what, hint)


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(values: list[float]) -> str:
    return " ".join(repr(float(value)) for value in values)
