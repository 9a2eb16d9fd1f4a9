"""Packages made to harm: each is refused in its own words, soon and within bounded memory, and hides no other."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

import packages
from diffusion_anomaly import api
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import ModelError
from diffusion_anomaly.models.loading import load_model
from diffusion_anomaly.models.manifest import MAX_TEXT_BYTES
from diffusion_anomaly.models.package import available, open_bundle
from diffusion_anomaly.models.verification import verify

ANOMALY, METADATA, MANIFEST = "configs/anomaly.json", "configs/metadata.json", "configs/manifest.json"
NETWORK, WEIGHTS = "configs/diffusion.json", "models/diffusion.safetensors"
MOST_SECONDS = 1.0  # for one package, in a process that has loaded everything
MOST_MB = 200


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = packages.unsupervised(tmp_path_factory.mktemp("models") / "toy").path
    verify(open_bundle(package))  # also loads what the first check of a process has to load
    return package


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "toy"))


def seal(package: Path) -> None:
    """Make the manifest agree with the files, as whoever writes a hostile package does."""
    files = {}
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.is_file() and name != MANIFEST:
            data = path.read_bytes()
            files[name] = {"sha256": sha256(data).hexdigest(), "size": len(data)}
    (package / MANIFEST).write_text(json.dumps({"schema_version": 1, "files": files}))


def put(file: str, text: str | bytes) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        (package / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def entry(file: str, *path: str, value: Any) -> Callable[[Path], None]:
    """Set one entry of a JSON file; ``value`` is JSON text, so that it may be what json would not write."""

    def change(package: Path) -> None:
        content = json.loads((package / file).read_text(encoding="utf-8"))
        holder = content
        for key in path[:-1]:
            holder = holder.setdefault(key, {})
        holder[path[-1]] = "\0"
        (package / file).write_text(json.dumps(content).replace(json.dumps("\0"), value))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(package: Path) -> None:
        state = load_file(package / WEIGHTS)
        change(state)
        (package / WEIGHTS).write_bytes(save(state))

    return apply


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Let the weights' header lie."""

    def apply(package: Path) -> None:
        data = (package / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + length])
        changed = json.dumps(change(content) or content).encode()
        (package / WEIGHTS).write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])

    return apply


def _first(content: dict[str, Any]) -> dict[str, Any]:
    return next(value for key, value in content.items() if key != "__metadata__")


def _poison(state: dict[str, torch.Tensor], value: float) -> None:
    next(iter(state.values())).flatten()[0] = value


DEEP = "[" * 200 + "]" * 200
HUGE = "1" + "0" * 399
SEALED: dict[str, tuple[Callable[[Path], None], str]] = {
    "integer beyond floats": (entry(ANOMALY, "grid", "spacing", value=HUGE), "64 bits"),
    "integer of 5000 digits": (entry(ANOMALY, "options", "steps", value="9" * 5000), "64 bits"),
    "float beyond floats": (entry(ANOMALY, "threshold", "heat", value="1e999"), "too large for a float"),
    "not a number": (entry(ANOMALY, "threshold", "heat", value="NaN"), "not a finite number"),
    "threshold of 0": (entry(ANOMALY, "threshold", "heat", value="0"), "threshold"),
    "threshold of a million": (entry(ANOMALY, "threshold", "heat", value="1e6"), "threshold"),
    "infinity": (entry(ANOMALY, "threshold", "heat", value="-Infinity"), "not a finite number"),
    "key twice": (put(ANOMALY, '{"name": "a", "name": "b"}'), "given twice"),
    "nested 200 deep": (entry(ANOMALY, "quality", "dice", value=DEEP), "nested"),
    "nested 100,000 deep": (put(ANOMALY, "[" * 100_000), "nested"),
    "no UTF-8": (put(ANOMALY, b'{"name": "\xff"}'), "is not JSON"),
    "byte order mark": (put(ANOMALY, b"\xef\xbb\xbf{}"), "BOM"),
    "empty": (put(ANOMALY, b""), "is not JSON"),
    "a list": (put(ANOMALY, "[]"), "an object is expected"),
    "lone surrogate": (entry(METADATA, "description", value=r'"\ud800"'), "control characters"),
    "escape in the licence": (entry(METADATA, "license", value=r'"\u001b[31mMIT"'), "control characters"),
    "escape in a key": (entry(ANOMALY, "quality", value=r'{"\u001b[2J": 1}'), "control characters"),
    "right to left": (entry(ANOMALY, "modality", value='"FL\\u202eRIA"'), "control characters"),
    "long licence": (entry(METADATA, "license", value='"' + "x" * 100_000 + '"'), "license"),
    "name that is a path": (entry(ANOMALY, "name", value='"../../etc"'), "name"),
    "name with markup": (entry(ANOMALY, "name", value='"<script>"'), "name"),
    "version without end": (entry(ANOMALY, "version", value='"1.0.0-' + "1" * 5000 + '"'), "version"),
    "version that is a path": (entry(ANOMALY, "version", value='"1.0.0/../.."'), "version"),
    "version that is a number": (entry(ANOMALY, "version", value="1.0"), "version"),
    "networks that are text": (entry(ANOMALY, "networks", value='"diffusion"'), "networks"),
    "100,000 networks": (
        entry(ANOMALY, "networks", value=json.dumps([f"n{i}" for i in range(100_000)])),
        "does not list",
    ),
    "options that are a number": (entry(ANOMALY, "options", value="1e308"), "options"),
    "options that are text": (entry(ANOMALY, "options", value='"steps"'), "options"),
    "option beyond its range": (entry(ANOMALY, "options", "steps", value="9007199254740993"), "steps"),
    "option of a list": (entry(ANOMALY, "options", "side", value="[1]"), "options/side"),
    "grid that is a list": (entry(ANOMALY, "grid", value="[40, 48]"), "grid"),
    "grid too fine": (entry(ANOMALY, "grid", "spacing", value="1e-6"), "grid/spacing"),
    "grid too coarse": (entry(ANOMALY, "grid", "spacing", value="1e6"), "grid/spacing"),
    "grid of 100,000 pixels": (entry(ANOMALY, "grid", "size", value="[100000, 100000]"), "grid/size"),
    "slices without thickness": (entry(ANOMALY, "grid", "max_slice_spacing", value="1e-300"), "max_slice_spacing"),
    "codec of factor 0": (entry(ANOMALY, "codec", "factor", value="0"), "codec/factor"),
    "codec that multiplies by 0": (entry(ANOMALY, "codec", "scale", value="0"), "codec/scale"),
    "codec of other channels": (entry(ANOMALY, "codec", "shift", value="[1, 2, 3]"), "3 values of shift"),
    "schedule of no levels": (entry(ANOMALY, "schedule", "levels", value="0"), "schedule/levels"),
    "post-processing of text": (entry(ANOMALY, "postprocess", "median_pixels", value='"3"'), "postprocess"),
    "threshold that is a list": (
        entry(ANOMALY, "latent_threshold", "value", value="[[1, 2], [3, 4]]"),
        "latent_threshold/value",
    ),
    "100,000 odd qualities": (
        entry(ANOMALY, "quality", value=json.dumps({f"q{i}": {} for i in range(100_000)})),
        "quality",
    ),
    "a million values": (entry(ANOMALY, "quality", "x", value=json.dumps([0] * 1_000_000)), "more than"),
    "10 MB of text": (entry(METADATA, "description", value='"' + "x" * 10_000_000 + '"'), "bytes, more than"),
    "10 MB licence": (put("LICENSE", b"x" * 10_000_000), "bytes, more than"),
    "no heads": (entry(NETWORK, "num_head_channels", value="0"), NETWORK),
    "no norms": (entry(NETWORK, "norm_num_groups", value="0"), NETWORK),
    "norms that divide nothing": (entry(NETWORK, "norm_num_groups", value="3"), NETWORK),
    "no channels": (entry(NETWORK, "channels", value="[]"), NETWORK),
    "channels of 16,384": (entry(NETWORK, "channels", value="[16384, 16384]"), "of shape"),
    "channels below 0": (entry(NETWORK, "channels", value="[-8, -8]"), NETWORK),
    "channels between": (entry(NETWORK, "channels", value="[8.5, 8]"), NETWORK),
    "16,384 blocks": (entry(NETWORK, "num_res_blocks", value="16384"), "num_res_blocks"),
    "16,384 blocks a level": (entry(NETWORK, "num_res_blocks", value="[1, 16384]"), "num_res_blocks"),
    "16,384 layers of attention": (entry(NETWORK, "transformer_num_layers", value="16384"), "transformer_num_layers"),
    "64 levels": (entry(NETWORK, "channels", value=json.dumps([8] * 64)), "channels"),
    "argument that is an object": (entry(NETWORK, "channels", value='{"a": 8}'), NETWORK),
    "argument of another type": (entry(NETWORK, "attention_levels", value='"no"'), "lacks the tensor"),
    "three dimensions": (entry(NETWORK, "spatial_dims", value="3"), "spatial_dims"),
    "class that is a list": (entry(NETWORK, "_target_", value='["VQVAE"]'), NETWORK),
    "class of the system": (entry(NETWORK, "_target_", value='"os.system"'), NETWORK),
    "an expression": (entry(NETWORK, "channels", value="\"$__import__('os').abort()\""), "expression"),
    "weights that are text": (put(WEIGHTS, "no weights"), "not a whole safetensors file"),
    "weights of nothing": (put(WEIGHTS, b""), "not a whole safetensors file"),
    "weights whose header is longer than the file": (put(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"), "safetensors"),
    "weights that reach beyond the file": (
        header(lambda h: _first(h).update(data_offsets=[0, 2**40])),
        "not a whole safetensors file",
    ),
    "weights that overlap": (
        header(lambda h: [v.update(data_offsets=[0, 16]) for k, v in h.items() if k != "__metadata__"] and None),
        "not a whole safetensors file",
    ),
    "weights of another shape": (header(lambda h: _first(h)["shape"].append(1)), "of shape"),
    "weights of a shape beyond floats": (header(lambda h: _first(h).update(shape=[2**63, 2**63])), "safetensors"),
    "weights of another type": (header(lambda h: _first(h).update(dtype="U16")), WEIGHTS),
    "a million tensors": (
        put(
            WEIGHTS,
            (lambda h: struct.pack("<Q", len(h)) + h)(
                b"{"
                + b",".join(b'"%d":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000))
                + b"}"
            ),
        ),
        "its network cannot fill",
    ),
    "weights that are no numbers": (tensors(lambda state: _poison(state, float("nan"))), "not finite"),
    "weights without end": (tensors(lambda state: _poison(state, float("-inf"))), "not finite"),
    "a weight too few": (tensors(lambda state: state.popitem() and None), "lacks the tensor"),
    "a weight too many": (tensors(lambda state: state.update(more=torch.zeros(1))), "does not have"),
    "a pickle": (put("models/more.pt", b"x"), "format that can run code"),
}


@contextmanager
def limits() -> Iterator[None]:
    """Within a second, and without memory to speak of."""
    import resource

    begin = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert time.process_time() - begin < 3 * MOST_SECONDS, "slow"  # a loaded machine is given some room
    assert grown < MOST_MB


def refused(package: Path, match: str) -> None:
    """Listing is quick whatever is wrong, and whoever uses the package learns of it in the package's own words."""
    with limits():
        (summary,) = available([package])[-1:]
    assert summary.path == package
    with limits(), pytest.raises(ModelError, match="Package toy") as raised:
        verify(open_bundle(package))
    assert match in str(raised.value)
    assert len(str(raised.value)) < 1000 and str(raised.value).isprintable() and raised.value.hint


@pytest.mark.skipif(sys.platform == "win32", reason="memory is measured as Unix does")
@pytest.mark.parametrize("name", SEALED)
def test_a_hostile_package_is_refused_soon_and_says_why(name: str, package: Path) -> None:
    change, match = SEALED[name]
    change(package)
    seal(package)
    refused(package, match)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in SEALED
        if name.startswith(("option", "no ", "weights", "grid", "channels", "16,384", "threshold"))
    ],
)
def test_a_run_with_a_hostile_package_that_nobody_verified_ends_in_the_same_error(name: str, package: Path) -> None:
    SEALED[name][0](package)
    seal(package)
    with pytest.raises(ModelError, match="Package toy"):
        load_model(make_plan(Options(method="unsupervised", model=str(package), device="cpu")).bundle, "cpu")


def _manifest(text: str | bytes) -> Callable[[Path], None]:
    return put(MANIFEST, text)


def _sparse(file: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        with (package / file).open("wb") as stream:
            stream.truncate(12 * 10**9)

    return change


def _instead(file: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        (package / file).unlink()
        make(package / file)

    return change


RECORD = '{"sha256": "' + "0" * 64 + '", "size": 1}'
UNSEALED: dict[str, tuple[Callable[[Path], None], str]] = {
    "400,000 keys and one twice": (
        _manifest("{" + ",".join(f'"{i}":0' for i in range(400_000)) + ',"7":1}'),
        "more than 200000 values",
    ),
    "190,000 keys and the last one twice": (
        _manifest("{" + ",".join(f'"{i}":0' for i in range(190_000)) + ',"189999":1}'),
        "given twice",
    ),
    "sparse manifest of 12 GB": (_sparse(MANIFEST), "bytes, more than"),
    "150,000 files": (
        _manifest('{"schema_version":1,"files":{' + ",".join(f'"f{i}":0' for i in range(150_000)) + "}}"),
        "more than the 100",
    ),
    "path out of the package": (_manifest(f'{{"schema_version":1,"files":{{"../x":{RECORD}}}}}'), "no file of the"),
    "path from the root": (_manifest(f'{{"schema_version":1,"files":{{"/etc/passwd":{RECORD}}}}}'), "no file of the"),
    "path with a null": (_manifest(f'{{"schema_version":1,"files":{{"a\\u0000b":{RECORD}}}}}'), "control characters"),
    "name of 1 MB": (_manifest(f'{{"schema_version":1,"files":{{"{"a" * 1_000_000}":{RECORD}}}}}'), "no file of the"),
    "size beyond floats": (
        _manifest(f'{{"schema_version":1,"files":{{"a":{{"sha256":"{"0" * 64}","size":{HUGE}}}}}}}'),
        "64 bits",
    ),
    "size below 0": (
        _manifest(f'{{"schema_version":1,"files":{{"a":{{"sha256":"{"0" * 64}","size":-1}}}}}}'),
        "expected a number of bytes",
    ),
    "version 1.0": (_manifest('{"schema_version":1.0,"files":{}}'), "schema_version"),
    "version true": (_manifest('{"schema_version":true,"files":{}}'), "schema_version"),
    "version of a list": (_manifest('{"schema_version":[[1]],"files":{}}'), "schema_version"),
    "manifest that is a folder": (_instead(MANIFEST, Path.mkdir), "no regular file"),
    "manifest that is a pipe": (_instead(MANIFEST, lambda path: os.mkfifo(path)), "no regular file"),
    "manifest that is a device": (_instead(MANIFEST, lambda path: path.symlink_to("/dev/zero")), "leads out"),
    "manifest that leads to itself": (_instead(MANIFEST, lambda path: path.symlink_to(path)), "leads out"),
    "manifest that leads nowhere": (_instead(MANIFEST, lambda path: path.symlink_to("gone")), "is missing"),
    "declaration that is a folder": (_instead(ANOMALY, Path.mkdir), "no regular file"),
    "declaration that is a pipe": (_instead(ANOMALY, lambda path: os.mkfifo(path)), "no regular file"),
    "declaration that leads out": (_instead(ANOMALY, lambda path: path.symlink_to("/etc/passwd")), "leads out"),
    "weights that are a pipe": (_instead(WEIGHTS, lambda path: os.mkfifo(path)), "no regular file"),
    "weights that lead out": (_instead(WEIGHTS, lambda path: path.symlink_to("/etc/passwd")), "leads out"),
    "sparse weights of 12 GB": (_sparse(WEIGHTS), "the manifest says"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="pipes, devices and links")
@pytest.mark.parametrize("name", UNSEALED)
def test_a_package_whose_files_are_not_what_they_seem_is_refused_soon(name: str, package: Path) -> None:
    change, match = UNSEALED[name]
    change(package)
    refused(package, match)


def test_sparse_weights_that_the_manifest_agrees_with_are_not_read(package: Path) -> None:
    _sparse(WEIGHTS)(package)
    manifest = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][WEIGHTS]["size"] = 12 * 10**9
    (package / MANIFEST).write_text(json.dumps(manifest))
    with limits(), pytest.raises(ModelError, match="its network cannot fill"):
        load_model(open_bundle(package), "cpu")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def test_every_usable_package_is_listed_beside_hostile_ones(original: Path, tmp_path: Path) -> None:
    unlike = []
    for number, (change, _) in enumerate([*SEALED.values(), *UNSEALED.values()][::2]):
        package = Path(shutil.copytree(original, tmp_path / f"h{number:03}"))
        change(package)
        if any(_size(package / file) != _size(original / file) for file in (ANOMALY, METADATA, MANIFEST)):
            unlike.append(package.name)
    shutil.copytree(original, tmp_path / "usable")
    (tmp_path / "locked").mkdir(mode=0)
    begin = time.process_time()
    listed = {summary.path.name: summary for summary in api.models([tmp_path])}
    assert time.process_time() - begin < MOST_SECONDS * 5
    assert len(listed) == len(available()) + number + 3
    assert not listed["usable"].problem and listed["locked"].problem
    assert len(unlike) > 20 and all(listed[name].problem for name in unlike)


def test_a_folder_of_packages_that_may_not_be_read_is_listed_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.iterdir

    def refuse(folder: Path) -> Iterator[Path]:
        if folder == tmp_path:
            raise PermissionError(13, "Permission denied")
        return usual(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    (last,) = available([tmp_path])[-1:]
    assert last.path == tmp_path and "Permission denied" in last.problem
    assert len(available([tmp_path])) > 1


def test_a_network_that_fits_its_weights_but_not_its_grid_is_refused(tmp_path: Path) -> None:
    classifier = {**packages.CLASSIFIER, "input_shape": [24, 20]}
    with pytest.raises(ModelError, match=r"configs/classifier\.json declares a network that cannot be run"):
        packages.write(
            tmp_path / "toy",
            "guided",
            {"diffusion": packages.DIFFUSION, "classifier": classifier},
            packages.GUIDED,
        )


def test_texts_of_a_package_reach_nobody_with_control_characters(package: Path) -> None:
    put("LICENSE", "MIT\n\x1b]8;;http://x\x1b\\ \x9b31m \x07")(package)
    put("docs/README.md", b"# Card \xff\x1b[2J")(package)
    seal(package)
    bundle = open_bundle(package)
    for text in (bundle.license_text, bundle.model_card):
        assert not any((ord(letter) < 32 and letter != "\n") or 0x7F <= ord(letter) < 0xA0 for letter in text)
    assert bundle.license_text.startswith("MIT\n")


def test_a_licence_as_long_as_allowed_is_shown(package: Path) -> None:
    put("LICENSE", b"x" * MAX_TEXT_BYTES)(package)
    seal(package)
    assert len(open_bundle(package).license_text) == MAX_TEXT_BYTES
