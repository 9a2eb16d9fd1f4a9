"""What is done to bytes and to texts: at random, and where a reader would believe what it reads."""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
import zlib
from typing import Any

NUMBERS = (
    *("0", "-1", "1", "-0", "0.0", "1e-300", "1e-6", "1e6", "1e20", "1e308", "1e999", "-1e999", "NaN", "nan", "inf"),
    *("-inf", "2147483647", "-2147483648", "4294967296", "9223372036854775807", "18446744073709551616", "1" * 400),
    *("0x10", "1,5", "²", "1_000", "", " ", "abc", "%s%n", "é", "1e", "--", "1 2 3", "true", "\x1b[31m", "a" * 5000),
)
FLOATS = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-30, 1e-6, -1.0, 1e6, 1e20, 3.4e38)
INTEGERS = (0, 1, -1, 2, 7, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1)


def _place(chance: random.Random, first: int, count: int) -> int:
    """Among the first bytes of so many; 0 where an earlier change has left none."""
    return chance.randrange(max(1, min(first, count)))


def flip(data: bytes, chance: random.Random, first: int) -> bytes:
    """Some bytes among the first ones replaced, by bits or as a whole."""
    changed = bytearray(data or b"\0")
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        at = _place(chance, first, len(changed))
        changed[at] = chance.choice((changed[at] ^ (1 << chance.randrange(8)), chance.randrange(256), 0, 255))
    return bytes(changed)


def overwrite(data: bytes, chance: random.Random, first: int) -> bytes:
    """A number of a kind that headers hold, of a value that they should not, somewhere among the first bytes."""
    at = chance.randrange(max(1, min(first, len(data) - 8)))
    at -= chance.choice((0, 0, at % 2, at % 4, at % 8))
    return _put(data, at, _packed(chance))


def _packed(chance: random.Random) -> bytes:
    order = chance.choice("<>")
    if chance.random() < 0.5:
        return struct.pack(order + chance.choice("fd"), chance.choice(FLOATS))
    size, kind = chance.choice(((2, "h"), (4, "i"), (8, "q")))
    bits = 8 * size
    value = chance.choice(INTEGERS) % 2**bits
    return struct.pack(order + kind, value - 2**bits if value >= 2 ** (bits - 1) else value)


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def cut(data: bytes, chance: random.Random, first: int) -> bytes:
    return data[
        : chance.choice((0, 1, _place(chance, len(data), len(data)), _place(chance, first, len(data)), -1, -100))
    ]


def insert(data: bytes, chance: random.Random, first: int) -> bytes:
    at = _place(chance, first, len(data))
    more = chance.choice((b"\0", b"\xff" * 4, b"\n", b"A" * 300, chance.randbytes(chance.choice((1, 7, 64, 5000)))))
    return data[:at] + more + data[at:]


def remove(data: bytes, chance: random.Random, first: int) -> bytes:
    at = _place(chance, first, len(data))
    return data[:at] + data[at + chance.choice((1, 2, 4, 16, 300)) :]


def repeat(data: bytes, chance: random.Random, first: int) -> bytes:
    at = _place(chance, first, len(data))
    return data[:at] + data[at : at + chance.choice((4, 64, 400))] * chance.choice((2, 3, 50)) + data[at:]


BYTES = (flip, flip, overwrite, overwrite, overwrite, cut, insert, remove, repeat)


def some_bytes(data: bytes, chance: random.Random, first: int = 600) -> bytes:
    """One of the mutations of bytes, or two."""
    for _ in range(chance.choice((1, 1, 1, 2))):
        if data:
            data = chance.choice(BYTES)(data, chance, first if chance.random() < 0.85 else len(data))
    return data


def stream(data: bytes, chance: random.Random) -> bytes:
    """Damage inside and around gzip: its content, the stream, its length, a second member, rubbish behind."""
    choice = chance.randrange(6)
    if choice < 3:
        return gzip.compress(some_bytes(gzip.decompress(data), chance), 1, mtime=0)
    if choice == 3:
        return some_bytes(data, chance, len(data))
    if choice == 4:
        return data + chance.choice((b"\0" * 512, b"rubbish", data, gzip.compress(b"more", mtime=0)))
    return _put(data, len(data) - 8, struct.pack("<II", chance.randrange(2**32), chance.choice((0, 2**32 - 1, 5))))


def some_text(text: str, chance: random.Random) -> str:
    """A text header with a number replaced, or a line dropped, repeated, moved, or made long."""
    lines = text.split("\n")
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(lines))
        choice = chance.randrange(9)
        if choice < 4:
            found = list(re.finditer(r"[-+.\w]+", lines[at]))
            if found:
                place = chance.choice(found)
                lines[at] = lines[at][: place.start()] + chance.choice(NUMBERS) + lines[at][place.end() :]
        elif choice == 4:
            del lines[at]
        elif choice == 5:
            lines.insert(at, lines[chance.randrange(len(lines))])
        elif choice == 6:
            chance.shuffle(lines)
        elif choice == 7:
            lines[at] += chance.choice((" " * 10_000, " 1" * 3000, " x" * 10, "\r", "\0", "=" * 100))
        else:
            lines[at] = lines[at].swapcase()
        if not lines:
            return ""
    return "\n".join(lines)


def some_json(data: bytes, chance: random.Random) -> bytes:
    """JSON with a value replaced, dropped, added or nested, or text that is hardly JSON."""
    if chance.random() < 0.2:
        return some_bytes(data, chance, len(data))
    places: list[tuple[Any, Any]] = []
    try:
        content = json.loads(data)
        _collect(content, places)
        holder, key = chance.choice(places)
    except (ValueError, RecursionError, AttributeError, TypeError, IndexError):  # mutated before into what is no JSON
        return some_bytes(data or b"{}", chance, len(data))
    choice = chance.randrange(8)
    mark = "\ue000"
    if choice == 0:
        del holder[key]
        return json.dumps(content).encode()
    if choice == 1:
        holder[key] = [holder[key]] * chance.choice((0, 1, 2, 100))
        return json.dumps(content).encode()
    if choice == 2 and isinstance(holder, dict):
        holder[chance.choice(("x", "_x", "$x", "", "é", "a" * 1000, "\x1b"))] = holder[key]
        return json.dumps(content).encode()
    holder[key] = mark
    return json.dumps(content).replace(json.dumps(mark), _value(chance)).encode("utf-8", "surrogatepass")


def _value(chance: random.Random) -> str:
    depth = chance.choice((3, 40, 200, 5000))
    return chance.choice(
        (
            *('""', "null", "true", "[]", "{}", "0", "-1", "1.5", "1e-300", "1e308", "1e999", "NaN", "-Infinity"),
            *("9" * 30, "9" * 400, "9" * 5000, "9007199254740993", "16384", "1e-6", "1e6", "[1,2,3]", '{"a":1}'),
            *("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, '"\\ud800"', '"\\u001b[31m"', '"$1"'),
            *('"../../x"', '"/dev/zero"', '"a\\u0000b"', json.dumps("x" * 100_000), json.dumps(["x"] * 1000), "\ud800"),
            *(json.dumps(list(range(50_000))), '{"a":1,"a":2}', '"<script>"', '"1.0.0"', '"restore"', '"VQVAE"'),
        )
    )


def _collect(content: Any, places: list[tuple[Any, Any]]) -> None:
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(entries):
        places.append((content, key))
        if isinstance(value, (dict, list)):
            _collect(value, places)


# NIfTI-1 and NIfTI-2: offset and format of each field.
NIFTI1 = {
    **{"sizeof_hdr": (0, "i"), "dim_info": (39, "b"), "datatype": (70, "h"), "bitpix": (72, "h")},
    **{"vox_offset": (108, "f"), "slope": (112, "f"), "inter": (116, "f"), "xyzt_units": (123, "b")},
    **{"qform_code": (252, "h"), "sform_code": (254, "h"), "magic": (344, "i")},
    **{f"dim{n}": (40 + 2 * n, "h") for n in range(8)},
    **{f"pixdim{n}": (76 + 4 * n, "f") for n in range(8)},
    **{f"form{n}": (256 + 4 * n, "f") for n in range(18)},
}
NIFTI2 = {
    **{"sizeof_hdr": (0, "i"), "magic": (4, "q"), "datatype": (12, "h"), "bitpix": (14, "h"), "vox_offset": (168, "q")},
    **{"slope": (176, "d"), "inter": (184, "d"), "qform_code": (344, "i"), "sform_code": (348, "i")},
    **{f"dim{n}": (16 + 8 * n, "q") for n in range(8)},
    **{f"pixdim{n}": (104 + 8 * n, "d") for n in range(8)},
    **{f"form{n}": (352 + 8 * n, "d") for n in range(18)},
    **{"xyzt_units": (500, "i")},
}


def nifti_fields(data: bytes, chance: random.Random) -> bytes:
    """One to three fields of a NIfTI header replaced."""
    fields = NIFTI2 if data[:4] == struct.pack("<i", 540) else NIFTI1
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, kind = chance.choice(list(fields.values()))
        size = struct.calcsize(kind)
        if kind in "fd":
            new = struct.pack("<" + kind, chance.choice((*FLOATS, 2.0, -2.0, 0.5, 348.0, 352.5)))
        else:
            value = chance.choice((*INTEGERS, 3, 4, 8, 16, 32, 64, 128, 512, 1536, 2304))
            new = (value % 2 ** (8 * size)).to_bytes(size, "little")
        data = _put(data, at, new)
    return data


def dicom_elements(data: bytes) -> list[tuple[int, int, int, str]]:
    """Start, start of the value and end of each element at the top of an explicit little-endian file, and its VR."""
    found, at = [], 132
    while at + 8 <= len(data):
        vr = data[at + 4 : at + 6].decode("latin-1")
        if vr in ("OB", "OW", "OF", "SQ", "UN", "UT", "OD", "UC", "UR"):
            length, value = struct.unpack_from("<I", data, at + 8)[0], at + 12
        else:
            length, value = struct.unpack_from("<H", data, at + 6)[0], at + 8
        if length == 0xFFFFFFFF or value + length > len(data):
            found.append((at, value, len(data), vr))
            break
        found.append((at, value, value + length, vr))
        at = value + length
    return found


def dicom_element(data: bytes, chance: random.Random) -> bytes:
    """An element replaced, dropped, repeated, of another type or length."""
    elements = [entry for entry in dicom_elements(data) if entry[2] - entry[1] < 2000] or [(132, 140, 140, "UL")]
    start, value, end, vr = chance.choice(elements)
    choice = chance.randrange(8)
    if choice < 4:
        if vr in ("US", "SS"):
            new = struct.pack("<H", chance.choice(INTEGERS) % 65536) * chance.choice((1, 1, 2))
        elif vr in ("UL", "SL"):
            new = struct.pack("<I", chance.choice(INTEGERS) % 2**32)
        elif vr in ("FD", "FL"):
            new = struct.pack("<d" if vr == "FD" else "<f", chance.choice(FLOATS))
        else:
            parts = data[value:end].decode("latin-1").split("\\")
            parts[chance.randrange(len(parts))] = chance.choice(NUMBERS)
            new = "\\".join(parts).encode("utf-8", "replace")[:60_000]
        new += b" " * (len(new) % 2)
        head = data[start : start + 6]
        length = struct.pack("<H", len(new)) if value - start == 8 else b"\0\0" + struct.pack("<I", len(new))
        return data[:start] + head + length + new + data[end:]
    if choice == 4:
        return data[:start] + data[end:]
    if choice == 5:
        return data[:end] + data[start:]
    if choice == 6:
        return _put(data, start + 4, chance.choice((b"DS", b"IS", b"US", b"SQ", b"OB", b"??", b"UN", b"\0\0")))
    return _put(data, value - 2, struct.pack("<H", chance.choice((0, 1, 0xFFFF, 4000))))


def zlib_text(data: bytes, chance: random.Random, header: int) -> bytes:
    """A file of a text header and a zlib stream with the stream's content, or the stream, damaged."""
    if chance.random() < 0.5:
        return data[:header] + some_bytes(data[header:], chance, len(data))
    return data[:header] + zlib.compress(zlib.decompress(data[header:])[: chance.choice((0, 10, -1))])
