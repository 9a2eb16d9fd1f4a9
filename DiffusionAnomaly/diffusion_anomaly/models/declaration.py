"""What a package's JSON must say: the schemas of ``schema/``, and the few rules that a schema cannot express.

jsonschema is imported when a check is asked for, because Slicer's own Python lists packages before it has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ModelError
from ..io.files import file_stem
from ..registry import METHODS, MethodEntry, get_method
from ..text import counted
from .manifest import NEWER, fail

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

SCHEMA_DIRECTORY = Path(__file__).parent / "schema"
METADATA = "configs/metadata.json"
ANOMALY = "configs/anomaly.json"
WRONG = "Correct the declaration and write the package again, or get the package again."
HELPERS = {"brain": "brain", "recognition": "recogniser"}
"""Kinds of package that are no method of slices, and the network of each: one finds brains, one recognises scans."""
BRAIN, HEAD, INTRACRANIAL, IMAGE = "brain", "head", "intracranial", "image"
REGIONS = {BRAIN: "brain", HEAD: "head", INTRACRANIAL: "space inside the skull", IMAGE: "image"}
"""What of a scan a package may look at, in words."""
# What is read before any schema is asked, in Slicer's own process too: what must be an object, and the short texts.
OBJECTS = {
    *("grid", "grid3d", "normalisation", "schedule", "codec", "options", "postprocess", "latent_threshold"),
    *("intensity", "calibration", "score_range", "threshold", "quality", "training", "appearance"),
}
NAMES = {
    "name": re.compile(r"[a-z0-9][a-z0-9-]{0,63}"),
    "version": re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}([+.-][0-9A-Za-z.+-]{1,40})?"),
    "method": re.compile(r"[a-z][a-z0-9_-]{0,39}"),
    "modality": re.compile(r".{1,40}"),
    "license": re.compile(r".{1,80}"),
}
_ERRORS_COMPARED = 100  # of however many a declaration has


def needed_networks(method: str) -> tuple[str, ...]:
    """The networks that a package of that method, or of a kind of ``HELPERS``, must hold."""
    return (HELPERS[method],) if method in HELPERS else get_method(method).networks


def network_file(part: str) -> str:
    return f"configs/{part}.json"


def weights_file(part: str) -> str:
    return f"models/{part}.safetensors"


def check_declaration(
    package: str,
    anomaly: Mapping[str, Any],
    metadata: Mapping[str, Any],
    networks: Mapping[str, Mapping[str, Any]],
) -> None:
    """Check a package's JSON against the schemas and against each other.

    Args:
        package: the name used in errors.
        anomaly, metadata: the contents of the files of these names.
        networks: for each declared network, its configuration.

    Raises:
        ModelError: for the first fault, naming the file and the place in it.
    """
    method = check_anomaly(package, anomaly, networks)
    check_schema(package, METADATA, "metadata", metadata)
    for part, config in networks.items():
        check_schema(package, network_file(part), "network", config)
        dimensions = 3 if part in HELPERS.values() else 2
        if config.get("spatial_dims", dimensions) != dimensions:
            found = f"has spatial_dims {config['spatial_dims']}, expected {dimensions}"
            fail(package, network_file(part), found, WRONG)
        _check_conditions(package, part, config)
    if metadata["version"] != anomaly["version"]:
        found = f"says version {metadata['version']}, {ANOMALY} says {anomaly['version']}"
        fail(package, METADATA, found, WRONG)
    if method is None:
        return
    _check_channels(package, anomaly)
    _check_grid(package, anomaly)
    if method.folded is not None:
        _check_folded(package, anomaly, networks, *method.folded)
    elif anomaly["grid"].get("neighbours"):
        found = f"shows neighbours to the networks of the method {method.name}, which see one slice"
        fail(package, ANOMALY, found, WRONG)
    else:
        _check_latents(package, anomaly, networks)
        _check_diffusion(package, anomaly, networks)
    _check_options(package, anomaly, method)
    _check_normalisation(package, anomaly)
    _check_postprocess(package, anomaly)
    _check_calibration(package, anomaly)


def check_anomaly(package: str, anomaly: Mapping[str, Any], networks: Iterable[str]) -> MethodEntry | None:
    """Check that ``anomaly.json`` says what its method needs, which everything else is derived from.

    Args:
        package: the name used in errors.
        anomaly: the content of the file.
        networks: the names of those that the package holds.

    Returns:
        The method; None for a package of ``HELPERS``.

    Raises:
        ModelError: for the first fault.
    """
    check_schema(package, ANOMALY, "anomaly", anomaly)
    if anomaly["method"] in HELPERS:
        _require(package, anomaly, networks, needed_networks(anomaly["method"]), ("grid3d",))
        return None
    method = METHODS.get(anomaly["method"])
    if method is None:
        known = ", ".join((*METHODS, *HELPERS))
        fail(package, ANOMALY, f"has the method {anomaly['method']!r}, this version knows {known}", NEWER)
    _require(package, anomaly, networks, method.networks, method.declared)
    needless = "" if method.networks else ", ".join(networks)
    if needless:
        fail(package, ANOMALY, f"holds the network {needless}, which the method {method.name} has no use for", WRONG)
    return method


def check_calibrated(package: str, anomaly: Mapping[str, Any]) -> None:
    """Refuse a package for slices whose scores have no scale yet, as it is between training and calibration."""
    method = METHODS.get(anomaly["method"])
    missing = [key for key in (method.calibrated if method else ()) if key not in anomaly]
    if missing:
        found = f"has no {', '.join(missing)}"
        fail(package, ANOMALY, found, "Calibrate it on healthy validation images first.")


def check_schema(package: str, file: str, schema: str, content: Mapping[str, Any]) -> None:
    """Check one file's content against ``schema/<schema>.json``.

    Raises:
        ModelError: for the fault that explains most, naming the place in the file.
    """
    from jsonschema.exceptions import best_match

    error = best_match(islice(_validator(schema).iter_errors(content), _ERRORS_COMPARED))
    if error is not None:
        # The message quotes the value at fault, which may be a whole table.
        message = error.message
        if len(message) > 240:
            message = f"{message[:160]} … {message[-70:]}"
        fail(package, file, f"at {_place(error.absolute_path)}: {message}", WRONG)


@cache
def _validator(schema: str) -> Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads((SCHEMA_DIRECTORY / f"{schema}.json").read_text(encoding="utf-8")))


def _place(path: Iterable[str | int]) -> str:
    return "/".join(str(step) for step in path) or "the top"


def _require(
    package: str,
    anomaly: Mapping[str, Any],
    networks: Iterable[str],
    parts: Iterable[str],
    entries: Iterable[str],
) -> None:
    """Refuse a package without what its method needs."""
    missing = [part for part in parts if part not in networks]
    if missing:
        found = f"has method {anomaly['method']} without its network {', '.join(missing)}"
        fail(package, ANOMALY, found, WRONG)
    # "options.levels" is the entry levels of options.
    lacking = [entry for entry in entries if not _holds(anomaly, entry.split("."))]
    if lacking:
        fail(package, ANOMALY, f"has method {anomaly['method']} and no {', '.join(lacking)}", WRONG)


def _holds(content: Any, path: Sequence[str]) -> bool:
    return not path or (isinstance(content, Mapping) and path[0] in content and _holds(content[path[0]], path[1:]))


def _channels(anomaly: Mapping[str, Any]) -> list[str]:
    """The contrasts that the networks see, as ``Bundle.channels``."""
    return list(anomaly.get("channels", (anomaly["modality"],)))


def _check_channels(package: str, anomaly: Mapping[str, Any]) -> None:
    """Results are files named by channel, on systems too for which ``t1`` and ``T1`` are one name."""
    stems: dict[str, str] = {}
    for name in _channels(anomaly):
        other = stems.setdefault(file_stem(name).lower(), name)
        if other != name:
            fail(package, ANOMALY, f"has the channels {other!r} and {name!r}, whose files would have one name", WRONG)


def _check_grid(package: str, anomaly: Mapping[str, Any]) -> None:
    region = anomaly.get("region", BRAIN)
    if "spacing" not in anomaly["grid"] and region != IMAGE:
        fail(package, ANOMALY, f"has a grid without spacing, but looks at the {region}, which has a size", WRONG)
    if "codec" not in anomaly:
        return
    size, factor = anomaly["grid"]["size"], anomaly["codec"]["factor"]
    if any(pixels % factor for pixels in size):
        found = f"has a grid of {size} pixels, not multiples of the codec's factor {factor}"
        fail(package, ANOMALY, found, WRONG)
    fold = anomaly["codec"].get("fold", 1)
    if factor % fold:
        fail(package, ANOMALY, f"folds {fold} pixels, which do not divide the codec's factor {factor}", WRONG)


def _check_latents(package: str, anomaly: Mapping[str, Any], networks: Mapping[str, Mapping[str, Any]]) -> None:
    """The first network takes the slices' channels: the codec, or where pixels are the latents every one."""
    if "codec" not in anomaly:
        return
    codec, channels = anomaly["codec"], len(_channels(anomaly))
    if "codec" in networks:
        wanted, parts = channels * codec.get("fold", 1) ** 2, ("codec",)
    else:
        wanted, parts = channels * codec["factor"] ** 2, tuple(networks)
    for part in parts:
        found = networks[part].get("in_channels")
        if found != wanted:
            folded = f"{counted(channels, 'channel')} of a slice, folded, are {wanted}"
            held = "1 channel" if found == 1 else f"{found} channels"
            fail(package, network_file(part), f"has {held} in; {folded}", WRONG)


def _check_diffusion(package: str, anomaly: Mapping[str, Any], networks: Mapping[str, Mapping[str, Any]]) -> None:
    """What the networks on latents hand each other: as many channels."""
    if "diffusion" not in networks:
        return
    latent = networks["diffusion"].get("in_channels")
    for part, key in (("diffusion", "out_channels"), ("classifier", "in_channels")):
        if part in networks and networks[part].get(key) != latent:
            found = f"has {key} {networks[part].get(key)}; the latents have {latent} channels"
            if part == "diffusion" and latent and networks[part].get(key) == 2 * latent:
                found += ", and a network that also predicts variances (learned sigma) is not supported"
            fail(package, network_file(part), found, WRONG)
    if networks.get("classifier", {}).get("out_channels", 2) != 2:
        found = f"has out_channels {networks['classifier']['out_channels']}; the classes are healthy and diseased"
        fail(package, network_file("classifier"), found, WRONG)
    for key in ("shift", "scale"):
        values = anomaly["codec"].get(key)
        if isinstance(values, list) and len(values) not in (1, latent):
            fail(
                package,
                ANOMALY,
                f"has a codec with {counted(len(values), 'value')} of {key} for {latent} channels",
                WRONG,
            )


def _check_conditions(package: str, part: str, config: Mapping[str, Any]) -> None:
    """Refuse networks that ask for what no method gives them: a context, or a class elsewhere than in diffusion.

    A class-conditional diffusion network is told "healthy".
    """
    if config.get("with_conditioning") or config.get("cross_attention_dim") is not None:
        fail(package, network_file(part), "has with_conditioning, but no method gives a network a context", WRONG)
    classes = config.get("num_class_embeds")
    if classes is not None and (part != "diffusion" or not isinstance(classes, int) or classes < 1):
        found = f"has num_class_embeds {classes}; a number of classes, healthy first, is for diffusion networks alone"
        fail(package, network_file(part), found, WRONG)


def _check_options(package: str, anomaly: Mapping[str, Any], method: MethodEntry) -> None:
    try:
        method.make_options(anomaly.get("options"))
    except ModelError as error:
        fail(package, ANOMALY, f"has options that do not fit: {error}".rstrip("."), WRONG)


def _check_folded(
    package: str,
    anomaly: Mapping[str, Any],
    networks: Mapping[str, Mapping[str, Any]],
    part: str,
    outputs: Callable[[int], tuple[int, ...]],
) -> None:
    """A network that works on folded pixels as they are, those of a slice and its neighbours.

    Args:
        package, anomaly, networks: as for ``check_declaration``.
        part: the network.
        outputs: how many numbers a pixel it may give, by the number of channels. A restorer gives its change, and
            perhaps a logit.
    """
    codec, config = anomaly["codec"], networks[part]
    if "codec" in networks or {"shift", "scale"} & codec.keys():
        fail(package, ANOMALY, f"encodes slices, which a {part} takes as folded pixels", WRONG)
    folded = codec["factor"] ** 2
    channels = len(_channels(anomaly))
    slices = channels * (1 + 2 * anomaly["grid"].get("neighbours", 0))
    wanted = [count * folded for count in outputs(channels)]
    found_in, found_out = config.get("in_channels"), config.get("out_channels")
    if found_in != slices * folded or found_out not in wanted:
        found = f"has {found_in} channels in and {found_out} out; the codec's factor {codec['factor']} needs"
        needed = f"{slices * folded} in, and {' or '.join(map(str, wanted))} out"
        fail(package, network_file(part), f"{found} {needed}", WRONG)


def _check_normalisation(package: str, anomaly: Mapping[str, Any]) -> None:
    rule = anomaly.get("normalisation")
    if (
        rule is not None
        and rule.get("kind", "percentiles") == "percentiles"
        and (rule["low_percentile"] >= rule["high_percentile"])
    ):
        low, high = rule["low_percentile"], rule["high_percentile"]
        fail(package, ANOMALY, f"normalises from percentile {low} up to {high}, which is not above it", WRONG)
    if rule is not None and rule.get("kind") == "window" and rule["low"] >= rule["high"]:
        fail(package, ANOMALY, f"has a window from {rule['low']} to {rule['high']}, which is not above it", WRONG)


def _check_postprocess(package: str, anomaly: Mapping[str, Any]) -> None:
    from .filters import PostprocessSettings

    try:
        PostprocessSettings.from_dict(anomaly.get("postprocess", {}))
    except InputError as error:
        fail(package, ANOMALY, f"has a postprocess, which does not fit: {error}".rstrip("."), WRONG)


def _check_calibration(package: str, anomaly: Mapping[str, Any]) -> None:
    for holder in (anomaly, anomaly.get("intensity", {})):
        table = holder.get("calibration", {"raw": [0, 1], "heat": [0, 1]})
        raw, scores = table["raw"], table["heat"]
        if len(raw) != len(scores):
            found = f"has {len(raw)} raw and {len(scores)} scores in its calibration"
            fail(package, ANOMALY, found, WRONG)
        for key in ("raw", "heat"):
            knots = table[key]
            if knots[0] != 0 or any(after <= before for before, after in pairwise(knots)):
                found = f"has a calibration whose {key} values do not start at 0 and increase"
                fail(package, ANOMALY, found, WRONG)
        spread = table.get("spread", {"heat": [], "upper": []})
        if len(spread["heat"]) != len(spread["upper"]):
            found = f"has a spread of {len(spread['heat'])} scores and {len(spread['upper'])} shares"
            fail(package, ANOMALY, found, WRONG)
