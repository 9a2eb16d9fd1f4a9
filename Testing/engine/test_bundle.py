"""Model packages: what was written comes back, and every damage is an error that says where."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diffusion_anomaly import models as bundles
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.models.declaration import SCHEMA_DIRECTORY
from diffusion_anomaly.models.loading import load_model
from diffusion_anomaly.models.networks import NETWORKS, build_network
from diffusion_anomaly.models.package import available, open_bundle
from diffusion_anomaly.models.verification import verify
from diffusion_anomaly.models.writing import write_bundle
from diffusion_anomaly.preprocessing.intensity import (
    ModeNormalisation,
    PercentileNormalisation,
    normalisation_from_dict,
)
from diffusion_anomaly.preprocessing.slices import Grid

CODEC = {
    "_target_": "VQVAE",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "channels": [4],
    "num_res_channels": [4],
    "num_res_layers": 1,
    "downsample_parameters": [[2, 4, 1, 1]],
    "upsample_parameters": [[2, 4, 1, 1, 0]],
    "num_embeddings": 8,
    "embedding_dim": 3,
}
DIFFUSION = {
    "_target_": "DiffusionModelUNet",
    "spatial_dims": 2,
    "in_channels": 3,
    "out_channels": 3,
    "channels": [4, 4],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "norm_num_groups": 2,
    "num_head_channels": 4,
}
PIXELS = {**DIFFUSION, "in_channels": 4, "out_channels": 4}  # without a codec's network: 2 x 2 pixels, folded
ANOMALY = {
    "modality": "FLAIR",
    "orientation": "axial",
    "grid": {"size": [32, 16], "spacing": 1.6},
    "normalisation": {"low_percentile": 5, "high_percentile": 75, "high_value": 0.5, "clip_max": 1.0},
    "schedule": {"kind": "scaled_linear", "levels": 1000},
    "prediction_type": "epsilon",
    "codec": {"factor": 2},
    "calibration": {"raw": [0.0, 0.5, 1.0], "heat": [0.0, 1.0, 3.0]},
    "score_range": {"mean": 1.0, "std": 0.1, "upper": 1.3},
    "latent_threshold": {"percentile": 97.5, "value": 1.2, "table": [[90.0, 1.0], [97.5, 1.2]]},
    "threshold": {"heat": 2.5},
    "quality": {"average_precision": 0.5},
}
METADATA = {
    "task": "Find anomalies in FLAIR",
    "description": "A small model for tests",
    "authors": "The authors",
    "copyright": "Copyright the authors",
    "license": "CC-BY-NC-SA-4.0",
    "intended_use": "Tests",
    "data_source": "Random numbers",
}
WEIGHTS = "models/diffusion.safetensors"
NAME = "flair-test"


def write(directory: Path, **changes: Any) -> bundles.Bundle:
    torch.manual_seed(0)
    networks = {"codec": CODEC, "diffusion": DIFFUSION}
    arguments = {
        "name": NAME,
        "version": "0.1.0",
        "method": "unsupervised",
        "networks": {part: (config, build_network(config).state_dict()) for part, config in networks.items()},
        "anomaly": ANOMALY,
        "metadata": METADATA,
        "model_card": "# The card",
        "data_license": "The data's licence",
        "license_text": "The licence",
    }
    return write_bundle(directory, **{**arguments, **changes})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / NAME).path


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / NAME))


def edit(package: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change one JSON file in place; ``change`` alters the content or returns another."""
    content = json.loads((package / file).read_text(encoding="utf-8"))
    changed = change(content)
    (package / file).write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


def seal(package: Path) -> None:
    """Make the manifest agree with the files, as somebody who put a package together by hand would."""
    files = {path for path in package.rglob("*") if path.is_file() and path.name != "manifest.json"}
    records = {
        path.relative_to(package).as_posix(): {
            "sha256": sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in sorted(files)
    }
    edit(package, "configs/manifest.json", lambda content: {**content, "files": records})


def fault(package: Path) -> ModelError:
    """The error that a damaged package ends in, after checking what every such error must be."""
    with pytest.raises(ModelError) as caught:
        verify(open_bundle(package))
    assert caught.value.exit_code == 3
    assert caught.value.hint, "the error must say what to do"
    assert "\n" not in str(caught.value)
    assert NAME in caught.value.what
    return caught.value


# --- What works


def test_importing_the_module_stays_light_enough_for_slicers_own_python() -> None:
    heavy = ["torch", "monai", "jsonschema", "pydantic", "safetensors", "numpy", "SimpleITK"]
    code = f"""
import sys
from diffusion_anomaly.models.package import available, open_bundle
available()
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_says_which_kind_of_scale_it_was_trained_with() -> None:
    for rule in (ModeNormalisation(), PercentileNormalisation()):
        assert normalisation_from_dict(rule.to_dict()) == rule
    old = {"low_percentile": 5, "high_percentile": 75, "high_value": 0.5, "clip_max": 1.0}
    assert normalisation_from_dict(old) == PercentileNormalisation()


def test_an_opened_package_says_what_was_written(original: Path) -> None:
    bundle = open_bundle(original)
    verify(bundle)
    assert (bundle.name, bundle.version, bundle.method) == (NAME, "0.1.0", "unsupervised")
    assert (bundle.modality, bundle.license) == ("FLAIR", "CC-BY-NC-SA-4.0")
    assert bundle.networks == ("codec", "diffusion")
    assert bundle.network_config("codec") == CODEC
    assert bundle.grid == Grid((32, 16), 1.6)
    assert bundle.normalisation == PercentileNormalisation(5, 75, 0.5, 1.0)
    assert bundle.license_text == "The licence\n"
    assert bundle.data_license == "The data's licence\n"
    assert bundle.model_card == "# The card\n"
    assert bundle.sha256 == sha256((original / "configs/manifest.json").read_bytes()).hexdigest()


def test_weights_come_back_as_the_nearest_float16(original: Path) -> None:
    torch.manual_seed(0)
    states = [build_network(config).state_dict() for config in (CODEC, DIFFUSION)]
    weights = open_bundle(original).weights("diffusion")
    assert weights.keys() == states[1].keys()
    assert all(torch.equal(weights[name], tensor.half()) for name, tensor in states[1].items())


def test_the_engine_runs_a_written_package(original: Path) -> None:
    model = load_model(open_bundle(original), "cpu", "float32")
    image = torch.zeros(1, 1, 16, 32)
    assert model.eps(model.encode(image), 500).shape == (1, 3, 8, 16)
    assert model.decode(model.encode(image)).shape == image.shape


def test_the_same_content_gives_the_same_bytes(original: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again")
    assert again.sha256 == open_bundle(original).sha256


def test_a_tensor_beyond_the_range_of_float16_is_stored_as_float32(tmp_path: Path) -> None:
    state = build_network(PIXELS).state_dict()
    state["out.2.conv.bias"] = torch.tensor([1.0, 70000.0, 3.0, 4.0])
    bundle = write(tmp_path / NAME, networks={"diffusion": (PIXELS, state)})
    stored = bundle.weights("diffusion")
    assert torch.equal(stored["out.2.conv.bias"], state["out.2.conv.bias"])
    assert stored["out.2.conv.weight"].dtype == torch.float16


def test_metadata_has_the_keys_of_the_monai_bundle_specification(original: Path) -> None:
    metadata = open_bundle(original).metadata
    required = {
        "schema",
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
        "task",
        "description",
        "authors",
        "copyright",
        "network_data_format",
    }
    assert required <= metadata.keys()
    diffusion, codec = metadata["network_data_format"], metadata["codec_data_format"]
    assert diffusion["inputs"]["latent"]["num_channels"] == 3
    assert diffusion["inputs"]["latent"]["spatial_shape"] == [8, 16]
    assert diffusion["inputs"]["timesteps"]["value_range"] == [0, 999]
    assert diffusion["outputs"]["noise"]["spatial_shape"] == [8, 16]
    assert codec["inputs"]["image"]["spatial_shape"] == [16, 32]
    assert codec["inputs"]["image"]["channel_def"] == {"0": "magnitude"}


def test_a_brain_package_needs_neither_a_schedule_nor_a_calibration(tmp_path: Path) -> None:
    config = {
        "_target_": "BasicUNet",
        "spatial_dims": 3,
        "in_channels": 8,
        "out_channels": 8,
        "features": [2, 2, 2, 2, 2, 2],
    }
    networks = {"brain": (config, build_network(config).state_dict())}
    anomaly = {"modality": "MR", "orientation": "any", "grid3d": {"spacing": 2.0}}
    bundle = write(tmp_path / "brain", name="brain", method="brain", networks=networks, anomaly=anomaly)
    verify(bundle)
    assert available([bundle.path])[-1].spacing == 2.0
    with pytest.raises(ModelError, match="declares no grid"):
        _ = bundle.grid


def test_the_schema_allows_exactly_the_networks_that_can_be_built() -> None:
    schema = json.loads((SCHEMA_DIRECTORY / "network.json").read_text(encoding="utf-8"))
    assert schema["properties"]["_target_"]["enum"] == sorted(NETWORKS)


def test_a_list_of_models_names_licence_expectations_quality_and_what_is_broken(package: Path) -> None:
    broken = package.parent / "broken"
    shutil.copytree(package, broken)
    (broken / "configs/anomaly.json").write_text("{", encoding="utf-8")
    (package.parent / ".hidden").mkdir()
    found = {summary.name: summary for summary in available([package.parent])}
    good, bad = found[NAME], found["broken"]
    assert (good.license, good.modality, good.orientation, good.spacing) == (
        "CC-BY-NC-SA-4.0",
        "FLAIR",
        "axial",
        1.6,
    )
    assert good.quality == {"average_precision": 0.5}
    assert good.problem == ""
    manifest = package / "configs/manifest.json"
    assert good.size_mb == pytest.approx(_size_mb(package) - manifest.stat().st_size / 1e6)
    assert "configs/anomaly.json" in bad.problem
    assert ".hidden" not in found


def test_an_odd_package_does_not_hide_the_others(package: Path) -> None:
    odd = package.parent / "odd"
    shutil.copytree(package, odd)
    edit(odd, "configs/anomaly.json", lambda content: content.update(grid=[1], quality="good"))
    seal(odd)
    found = {summary.path.name: summary for summary in available([package.parent])}
    assert (found["odd"].spacing, found["odd"].quality) == (0.0, {})
    assert found[NAME].spacing == 1.6


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def test_every_built_in_package_is_whole() -> None:
    for summary in available():
        verify(open_bundle(summary.name))
        assert summary.problem == ""


def test_a_built_in_package_opens_by_name_and_a_path_may_have_spaces_and_letters_of_any_script(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = package.parent / "modèles 脑 x"
    odd.mkdir()
    shutil.copytree(package, odd / NAME)
    monkeypatch.setattr(bundles.package, "builtin_directory", lambda: odd)
    verify(open_bundle(NAME))
    verify(open_bundle(odd / NAME))
    with pytest.raises(ModelError, match=f"Unknown model 'flair-tset'.*Choose one of {NAME}"):
        open_bundle("flair-tset")


# --- Writing leaves either the new package or the old one


def test_writing_replaces_a_package_and_leaves_nothing_else(package: Path) -> None:
    write(package, version="0.2.0")
    assert open_bundle(package).version == "0.2.0"
    assert [path.name for path in package.parent.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": "second"}, r"anomaly.json at version: 'second' does not match"),
        ({"metadata": {**METADATA, "version": "9.9.9"}}, r"says version 9.9.9, .* says 0.1.0"),
        ({"metadata": {"task": "no more"}}, r"metadata.json at the top: '\w+' is a required property"),
        ({"anomaly": {**ANOMALY, "thresholds": 1}}, r"'thresholds' was unexpected"),
        ({"anomaly": {**ANOMALY, "threshold": {"heat": float("nan")}}}, r"anomaly.json cannot be written"),
        (
            {"anomaly": {"modality": "FLAIR"}},
            r"anomaly.json has method unsupervised and no grid, normalisation, schedule",
        ),
        ({"method": "guided"}, r"anomaly.json has method guided without its network classifier"),
        ({"networks": {"diffusion": (DIFFUSION, {})}}, r"diffusion.json has 3 channels in; 1 channel .* are 4"),
        (
            {"anomaly": {**ANOMALY, "channels": ["FLAIR", "T1"]}},
            r"codec.json has 1 channel in; 2 channels of a slice, folded, are 2",
        ),
        ({"networks": {"diffusion": (PIXELS, {})}}, r"diffusion.safetensors lacks the tensor"),
        (
            {"networks": {"diffusion": (PIXELS, {"a": torch.tensor([1.0, torch.inf])})}},
            r"diffusion.safetensors holds 1 value in 'a' that is not finite",
        ),
        (
            {"networks": {"diffusion": (PIXELS, {"a": torch.ones(1, dtype=torch.bool)})}},
            r"a tensor of bool",
        ),
    ],
)
def test_a_package_at_fault_is_not_written_and_the_old_one_stays(
    package: Path, changes: dict[str, Any], expected: str
) -> None:
    before = open_bundle(package).sha256
    with pytest.raises(ModelError, match=expected):
        write(package, **changes)
    assert open_bundle(package).sha256 == before
    assert [path.name for path in package.parent.iterdir()] == [NAME]


def test_the_old_package_comes_back_when_the_new_one_cannot_be_moved(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_anomaly.models import writing

    replace, calls = writing.os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError("disk")
        replace(source, target)

    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)  # as on systems that cannot do it in one step
    monkeypatch.setattr(writing.os, "replace", second_fails)
    with pytest.raises(InputError, match="disk"):
        write(package, version="0.2.0")
    verify(open_bundle(package))
    assert open_bundle(package).version == "0.1.0"


def test_a_folder_that_is_not_a_package_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ModelError, match="something else than a model package"):
            write(place)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_package_without_calibration_loads_but_is_not_ready_for_use(tmp_path: Path) -> None:
    draft = {key: value for key, value in ANOMALY.items() if key not in ("calibration", "threshold")}
    bundle = write(tmp_path / NAME, anomaly=draft)
    assert bundle.weights("diffusion")
    assert "has no calibration, threshold. Calibrate it" in str(fault(bundle.path))


# --- Places that are no package


def test_a_place_without_a_package_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pt").write_bytes(b"x")
    for place, expected in [
        (tmp_path / "nowhere", "There is no model package at"),
        (tmp_path / ("x" * 300), "There is no model package at"),
        (tmp_path / "model.pt", "is a file; a model package is a folder"),
        (tmp_path / "empty", "is not a model package: configs/manifest.json is missing"),
    ]:
        with pytest.raises(ModelError, match=expected) as caught:
            open_bundle(place)
        assert place.name in caught.value.what
        assert caught.value.hint


def test_a_part_that_is_not_declared_is_refused(original: Path) -> None:
    for read in (open_bundle(original).weights, open_bundle(original).network_config):
        with pytest.raises(ModelError, match="declares no network classifier, only codec, diffusion"):
            read("classifier")


# --- Damage: the manifest and the files disagree


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing weights": (lambda p: (p / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "missing declaration": (
        lambda p: (p / "configs/anomaly.json").unlink(),
        "configs/anomaly.json is missing",
    ),
    "missing licence": (lambda p: (p / "LICENSE").unlink(), "LICENSE is missing"),
    "missing manifest": (
        lambda p: (p / "configs/manifest.json").unlink(),
        "configs/manifest.json is missing",
    ),
    "cut weights": (lambda p: cut(p / WEIGHTS), f"{WEIGHTS} has "),
    "flipped bit in the weights": (lambda p: flip(p / WEIGHTS), f"{WEIGHTS} has SHA256 "),
    "flipped bit in the licence": (
        lambda p: flip(p / "docs/data_license.txt"),
        "docs/data_license.txt has SHA256",
    ),
    "changed threshold": (
        lambda p: edit(p, "configs/anomaly.json", lambda c: c["threshold"].update(anomaly_map=9.5)),
        "configs/anomaly.json has ",
    ),
    "cut manifest": (lambda p: cut(p / "configs/manifest.json"), "configs/manifest.json is not JSON"),
    "text for a manifest": (
        lambda p: (p / "configs/manifest.json").write_bytes(b"\xff\xfe"),
        "configs/manifest.json is not JSON",
    ),
    "pickle beside the weights": (
        lambda p: (p / "models/model.pt").write_bytes(pickle.dumps({})),
        "models/model.pt is of a format that can run code",
    ),
    "file that is not listed": (
        lambda p: shutil.copy(p / WEIGHTS, p / "models/extra.safetensors"),
        "models/extra.safetensors is not listed",
    ),
    "file in a folder that is not listed": (
        lambda p: shutil.copytree(p / "docs", p / "models/more"),
        "models/more/README.md is not listed",
    ),
    "configuration that is not listed": (
        lambda p: (p / "configs/inference.json").write_text("{}"),
        "configs/inference.json is not listed",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(package: Path, name: str) -> None:
    damage, expected = DAMAGE[name]
    damage(package)
    assert expected in fault(package).what


def test_damaged_weights_are_not_loaded_even_without_verifying(package: Path) -> None:
    flip(package / WEIGHTS)
    with pytest.raises(ModelError, match="SHA256"):
        open_bundle(package).weights("diffusion")


def test_links_out_of_the_package_are_refused(package: Path) -> None:
    outside = package.parent / "outside"
    shutil.move(package / "models", outside)
    (package / "models").symlink_to(outside, target_is_directory=True)
    assert "models is a link that leads out of the package" in fault(package).what
    with pytest.raises(ModelError, match="leads out of the package"):
        open_bundle(package).weights("diffusion")


def test_other_files_beside_the_package_do_no_harm(package: Path) -> None:
    (package / ".DS_Store").write_bytes(b"x")
    verify(open_bundle(package))


# --- Foreign packages: the manifest agrees with the files, but they are not what they should be


def declare(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda package: edit(package, "configs/anomaly.json", change)


def configure(**changes: Any) -> Callable[[Path], None]:
    return lambda package: edit(package, "configs/diffusion.json", lambda content: content.update(changes))


def retensor(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        tensors = load_file(package / WEIGHTS)
        change(tensors)
        save_file(tensors, package / WEIGHTS)

    return damage


def replace_text(file: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        text = (package / file).read_text(encoding="utf-8")
        assert old in text
        (package / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    return damage


BIAS = "out.2.conv.bias"
FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "newer": (declare(lambda c: c.update(schema_version=2)), "schema_version 2, this version reads up to 1"),
    "version that is no number": (declare(lambda c: c.update(schema_version=True)), "schema_version True"),
    "broken JSON": (lambda p: cut(p / "configs/anomaly.json"), "configs/anomaly.json is not JSON"),
    "list for an object": (declare(lambda c: [c]), "configs/anomaly.json holds a list"),
    "endless nesting": (
        lambda p: (p / "configs/anomaly.json").write_text("[" * 100_000),
        "configs/anomaly.json is not JSON",
    ),
    "NaN": (replace_text("configs/anomaly.json", "2.5", "NaN"), "NaN is not a finite number"),
    "number beyond a float": (replace_text("configs/anomaly.json", "2.5", "1e999"), "too large for a float"),
    "key given twice": (
        replace_text("configs/anomaly.json", '"name"', '"version": "1", "name"'),
        "the key 'version' is given twice",
    ),
    "expression": (
        declare(lambda c: c.update(modality="$__import__('os')")),
        "\"$__import__('os')\" is an expression",
    ),
    "reference": (configure(act="@network"), "'@network' is an expression"),
    "macro": (configure(act=" %file"), "' %file' is an expression"),
    "expression in a list": (configure(channels=["$1", 4]), "'$1' is an expression"),
    "expression in metadata": (
        lambda p: edit(p, "configs/metadata.json", lambda c: c.update(changelog={"0": "$x"})),
        "configs/metadata.json is not JSON that a package may hold: '$x' is an expression",
    ),
    "instruction": (configure(_disabled_=False), "the key '_disabled_' is an instruction"),
    "nested class": (configure(dropout={"_target_": "VQVAE"}), "the key '_target_' is an instruction"),
    "class that is not allowed": (
        configure(_target_="os.system"),
        "configs/diffusion.json at _target_: 'os.system'",
    ),
    "argument that does not exist": (configure(colour="red"), "does not take colour"),
    "argument out of bounds": (configure(in_channels=10**9), "configs/diffusion.json at in_channels"),
    "arguments that do not fit together": (
        configure(channels=[4, 5]),
        "configs/diffusion.json cannot be followed: DiffusionModelUNet",
    ),
    "unknown method": (
        declare(lambda c: c.update(method="magic")),
        "has the method 'magic', this version knows localise, unsupervised, ",
    ),
    "no name": (declare(lambda c: c.pop("name") and None), "has name None, expected a text"),
    "no networks": (declare(lambda c: c.pop("networks") and None), "has no list of networks"),
    "grid that the codec cannot halve": (
        declare(lambda c: c["grid"].update(size=[32, 17])),
        "[32, 17] pixels, not multiples of the codec's factor 2",
    ),
    "folding that the codec's factor is no multiple of": (
        declare(lambda c: c["codec"].update(fold=4)),
        "folds 4 pixels, which do not divide the codec's factor 2",
    ),
    "percentiles upside down": (
        declare(lambda c: c["normalisation"].update(low_percentile=80)),
        "from percentile 80 up to 75",
    ),
    "a scale of an unknown kind": (
        declare(lambda c: c["normalisation"].update(kind="median")),
        "'median' is not one of",
    ),
    "a mode with percentiles": (declare(lambda c: c["normalisation"].update(kind="mode")), "mode_value"),
    "one filter on the grid and in mm": (
        declare(lambda c: c.update(postprocess={"median_pixels": 5, "median_mm": 8.0})),
        "postprocess, which does not fit: Options median_pixels and median_mm are both given",
    ),
    "filter that is unknown": (declare(lambda c: c.update(postprocess={"blur": 1})), "at postprocess: "),
    "calibration of unequal length": (
        declare(lambda c: c["calibration"]["raw"].append(2.0)),
        "has 4 raw and 3 scores",
    ),
    "calibration that falls": (
        declare(lambda c: c["calibration"].update(heat=[0.0, 2.0, 1.0])),
        "calibration whose heat values do not start at 0 and increase",
    ),
    "calibration of the baseline that does not start at 0": (
        declare(lambda c: c.update(intensity={"calibration": {"raw": [0.1, 1.0], "heat": [0.0, 1.0]}})),
        "calibration whose raw values do not start at 0 and increase",
    ),
    "bound of single scans of unequal length": (
        declare(lambda c: c["calibration"].update(spread={"heat": [1, 2, 3], "upper": [0.2, 0.03], "scans": 12})),
        "has a spread of 3 scores and 2 shares",
    ),
    "bound of single scans of too few": (
        declare(lambda c: c["calibration"].update(spread={"heat": [3], "upper": [0.01], "scans": 8})),
        "at calibration/spread/scans",
    ),
    "renamed tensor": (
        retensor(lambda t: t.update(other=t.pop(BIAS))),
        f"{WEIGHTS} lacks the tensor '{BIAS}'",
    ),
    "additional tensor": (
        retensor(lambda t: t.update(other=torch.ones(1))),
        "'other', which DiffusionModelUNet",
    ),
    "tensor of another shape": (
        retensor(lambda t: t.update({BIAS: torch.ones(4)})),
        f"'{BIAS}' of shape (4,), expected (3,)",
    ),
    "integers for floats": (
        retensor(lambda t: t.update({BIAS: torch.ones(3, dtype=torch.int64)})),
        f"'{BIAS}' as int64, expected float32",
    ),
    "tensor of float64": (
        retensor(lambda t: t.update({BIAS: torch.ones(3).double()})),
        f"'{BIAS}' as float64",
    ),
    "NaN weights": (
        retensor(lambda t: t[BIAS].fill_(torch.nan)),
        f"3 values in '{BIAS}' that are not finite",
    ),
    "cut weights": (lambda p: cut(p / WEIGHTS), f"{WEIGHTS} is not a whole safetensors file"),
    "pickle under another name": (
        lambda p: (p / WEIGHTS).write_bytes(pickle.dumps({})),
        f"{WEIGHTS} is not a whole safetensors file",
    ),
    "empty weights": (lambda p: (p / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is not a whole safetensors file"),
    "listed pickle": (
        lambda p: (p / "models/model.pt").write_bytes(pickle.dumps({})),
        "lists 'models/model.pt', a format that can run code",
    ),
    "weights of no network": (
        lambda p: shutil.copy(p / WEIGHTS, p / "models/spare.safetensors"),
        "models/spare.safetensors belongs to none of the networks codec, diffusion",
    ),
    "no licence": (lambda p: (p / "LICENSE").unlink(), "configs/manifest.json does not list LICENSE"),
    "no model card": (lambda p: (p / "docs/README.md").unlink(), "does not list docs/README.md"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_package_is_refused_although_its_hashes_agree(package: Path, name: str) -> None:
    damage, expected = FOREIGN[name]
    damage(package)
    seal(package)
    assert expected in fault(package).what


def test_a_newer_package_asks_for_an_update(package: Path) -> None:
    edit(package, "configs/manifest.json", lambda content: content.update(schema_version=7))
    assert "newer DiffusionAnomaly; update" in fault(package).hint


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json",
        "models/../../outside",
        "/etc/passwd",
        "C:\\outside",
        "models\\x.safetensors",
        "models/a/b",
        "other/x",
        "..",
        "",
        "configs/manifest.json",
    ],
)
def test_a_manifest_cannot_name_what_lies_outside(package: Path, name: str) -> None:
    record = {"sha256": "0" * 64, "size": 0}
    edit(package, "configs/manifest.json", lambda content: content["files"].update({name: record}))
    assert f"lists {name!r}, which is no file of the package" in fault(package).what


@pytest.mark.parametrize(
    "record",
    [None, {}, {"sha256": "0" * 64}, {"sha256": "A" * 64, "size": 1}, {"sha256": "0" * 64, "size": 1.0}],
)
def test_a_manifest_gives_hash_and_size_of_every_file(package: Path, record: object) -> None:
    edit(package, "configs/manifest.json", lambda content: content["files"].update({WEIGHTS: record}))
    assert WEIGHTS in fault(package).what


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found(package: Path, data: st.DataObject) -> None:
    files = sorted(path for path in package.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    position = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        # White space is all that may differ in the one file that nothing else holds the hash of.
        if path.name != "manifest.json" or not _same_json(before, bytes(changed)):
            fault(package)
        else:
            verify(open_bundle(package))
    finally:
        path.write_bytes(before)


def _same_json(first: bytes, second: bytes) -> bool:
    try:
        return json.loads(first) == json.loads(second)
    except ValueError:
        return False
