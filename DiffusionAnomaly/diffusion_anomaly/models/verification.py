"""Everything that can be checked about a package without a scan."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from .declaration import ANOMALY, METADATA, WRONG, check_calibrated, network_file, weights_file
from .manifest import MANIFEST, PICKLES, fail, inside, read_file
from .package import DATA_LICENSE, LICENSE, MODEL_CARD, Bundle

if TYPE_CHECKING:
    from torch import nn

_CUBE = {"size": (32, 32, 32)}  # of a network that has no grid of slices, the one that finds brains
MAX_PATHS = 10_000  # looked at in a package's folder

# Nothing may lie in these that the manifest does not list; elsewhere a desktop's own files do no harm.
CLOSED_FOLDERS = ("configs", "models")


def verify(bundle: Bundle) -> None:
    """Check that a package is whole, safe, consistent and ready for use.

    Each file is there, has its size and SHA256, and lies in the package; nothing else lies beside
    configurations and weights; every JSON passes its schema; each network can be built, and its tensors have
    the names, shapes and kinds of number that the built network has, and finite values; scores are calibrated.

    Raises:
        ModelError: for the first fault, in one line naming the package, the file and what to do.
    """
    check_files(bundle)
    check_networks(bundle)
    check_calibrated(bundle.name, bundle.anomaly)


def check_files(bundle: Bundle) -> None:
    """Compare the folder with the manifest, in both directions.

    Raises:
        ModelError: for a file that is missing, changed, not listed, of no use, or a pickle.
    """
    declared = {ANOMALY, METADATA}
    declared.update(network_file(part) for part in bundle.networks)
    declared.update(weights_file(part) for part in bundle.networks)
    for file in sorted({*declared, MODEL_CARD, DATA_LICENSE, LICENSE} - bundle.files.keys()):
        fail(bundle.name, MANIFEST, f"does not list {file}")
    paths = list(islice(bundle.path.rglob("*"), MAX_PATHS + 1))
    if len(paths) > MAX_PATHS:
        fail(bundle.name, MANIFEST, f"lies in a folder of more than {MAX_PATHS} files", "Keep the package by itself.")
    for path in sorted(paths):
        file = path.relative_to(bundle.path).as_posix()
        inside(bundle.path, bundle.name, file)
        if path.is_dir() or file == MANIFEST or not _is_closed(file):
            continue
        if path.suffix.lower() in PICKLES:
            fail(bundle.name, file, "is of a format that can run code when it is loaded", "Delete the file.")
        if file not in bundle.files:
            fail(bundle.name, file, "is not listed in the manifest", "Delete it, or get the package again.")
    for file, record in bundle.files.items():
        read_file(bundle.path, bundle.name, file, record)
        if _is_closed(file) and file not in declared:
            fail(bundle.name, file, f"belongs to none of the networks {', '.join(bundle.networks)}")


def check_networks(bundle: Bundle) -> None:
    """Check the whole declaration, and the weights of every network against it.

    Each network is also called once, on zeros: strides, groups and heads may fit the tensors and not the grid.

    Raises:
        ModelError: naming the configuration's place or the tensor at fault.
    """
    from .loading import load_network

    bundle.check()
    for part in bundle.networks:
        _check_runs(bundle, part, load_network(bundle, part))


def _check_runs(bundle: Bundle, part: str, network: nn.Module) -> None:
    """Call a network on one slice of the package's grid, or on a corner of it with the same remainders."""
    import torch

    from .networks import Codec, call_at

    config = bundle.network_config(part)
    channels = config.get("in_channels", 1)
    codec = bundle.anomaly.get("codec", {"factor": 1})
    latent = [_corner(pixels // codec["factor"]) for pixels in reversed(bundle.anomaly.get("grid", _CUBE)["size"])]
    takes_level = config["_target_"] in ("DiffusionModelUNet", "DiffusionModelEncoder")
    try:
        with torch.no_grad():
            if part == "codec":
                fold, factor = codec.get("fold", 1), codec["factor"]
                pair = Codec(network, factor, fold=fold)
                encoded = pair.encode(torch.zeros(1, channels // fold**2, *(edge * factor for edge in latent)))
                found, expected = encoded.shape[2:], tuple(latent)
                decoded = pair.decode(encoded)
                found, expected = (*found, *decoded.shape[2:]), (*expected, *(edge * factor for edge in latent))
            else:
                image = torch.zeros(1, channels, *latent)
                output = call_at(network, image, torch.zeros(1, dtype=torch.long)) if takes_level else network(image)
                found, expected = output.shape[1:], (config.get("out_channels"), *latent)
                if part in ("classifier", "recogniser"):
                    expected = expected[:1]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - what a network raises for a wrong shape depends on where it fails
        fail(bundle.name, network_file(part), f"declares a network that cannot be run: {error}", WRONG)
    if tuple(found) != tuple(expected):
        found, expected = (" x ".join(map(str, shape)) for shape in (found, expected))
        fail(bundle.name, network_file(part), f"declares a network that gives {found}, expected {expected}", WRONG)


def _corner(edge: int) -> int:
    return edge if edge <= 128 else 64 + edge % 64


def _is_closed(file: str) -> bool:
    return file.split("/")[0] in CLOSED_FOLDERS
