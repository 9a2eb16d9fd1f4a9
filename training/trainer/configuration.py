"""Configuration files: YAML in, a typed and checked model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)


class ConfigurationError(ValueError):
    """A configuration file has a wrong, missing or unknown entry."""


def read_yaml(path: Path, kind: type[T]) -> T:
    """Read a configuration file. With ``base``, the path of another one, it only says what differs from that one.

    Raises:
        ConfigurationError: naming the file and each wrong entry.
    """
    try:
        return kind.model_validate(read_entries(path))
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {'; '.join(_wrong_entries(error))}.") from error


def read_entries(path: Path) -> Any:
    """A file's entries over those of its base, as they stand there.

    Raises:
        ConfigurationError: when the file cannot be read.
    """
    return _entries(path, ())


def _entries(path: Path, above: tuple[Path, ...]) -> Any:
    """A file's own entries over those of its base.

    Args:
        path: the file.
        above: the files that it is a base of.
    """
    if path in above:
        raise ConfigurationError(f"{path} is a base of itself.")
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    if not isinstance(own, dict) or "base" not in own:
        return own
    return merged(_entries(Path(str(own.pop("base"))), (*above, path)), own)


def merged(base: Any, own: Any) -> Any:
    """One file's entries over another's: mappings entry by entry; of anything else what is the file's own."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    return base | {name: merged(base.get(name), value) for name, value in own.items()}


def _wrong_entries(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        entry = ".".join(str(part) for part in item["loc"]) or "the file"
        message = item["msg"].removeprefix("Value error, ").rstrip(".")
        found = "" if item["type"] in ("missing", "value_error") else f", found {item['input']!r}"
        lines.append(f"{entry}: {message}{found}")
    return lines


def _buildable(declaration: dict[str, Any]) -> dict[str, Any]:
    """Build the network without memory or random draws, so that a wrong entry shows before any data is read."""
    import torch

    from diffusion_anomaly.errors import ModelError
    from diffusion_anomaly.models.networks import build_network

    try:
        with torch.device("meta"):
            build_network(declaration)
    except ModelError as error:
        raise ValueError(str(error)) from error
    return declaration


NetworkDeclaration = Annotated[dict[str, Any], AfterValidator(_buildable)]
"""``{"_target_": class name, **arguments}`` of a network that the engine builds."""
