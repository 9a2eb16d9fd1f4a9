"""Everything that can be checked about a package without a scan."""

from __future__ import annotations

from .declaration import ANOMALY, METADATA, check_calibrated, check_declaration, network_file, weights_file
from .manifest import MANIFEST, PICKLES, fail, inside, read_file
from .package import DATA_LICENSE, LICENSE, MODEL_CARD, Bundle

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
    for path in sorted(bundle.path.rglob("*")):
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

    Raises:
        ModelError: naming the configuration's place or the tensor at fault.
    """
    from .weights import check_fit

    configs = {part: bundle.network_config(part) for part in bundle.networks}
    if not configs:  # nobody else has looked at the declaration then
        check_declaration(bundle.name, bundle.anomaly, bundle.metadata, configs)
    for part, config in configs.items():
        check_fit(bundle.weights(part), config, bundle.name, part)


def _is_closed(file: str) -> bool:
    return file.split("/")[0] in CLOSED_FOLDERS
