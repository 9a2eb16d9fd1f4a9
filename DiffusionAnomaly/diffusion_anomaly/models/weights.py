"""A package's tensors: safetensors bytes in and out, and whether they are what the declared network expects.

The only part of the packages that imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import ModelError
from .declaration import WRONG, network_file, weights_file
from .manifest import fail

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int64)


def read_tensors(data: bytes, package: str, file: str) -> dict[str, Tensor]:
    """Tensors by name, of the types a package may hold and with finite values.

    Raises:
        ModelError: naming the file and the tensor.
    """
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        fail(package, file, f"is not a whole safetensors file: {error}")
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            allowed = ", ".join(_name(dtype) for dtype in DTYPES)
            fail(package, file, f"holds {name!r} as {_name(tensor.dtype)}, expected one of {allowed}")
        _check_finite(tensor, package, file, name)
    return tensors


def write_tensors(state: Mapping[str, Tensor], package: str, file: str) -> bytes:
    """A state dict as safetensors: floats as float16 where its range allows, integers as they are.

    Raises:
        ModelError: for a value that is not finite, or a type that packages do not hold.
    """
    stored = {}
    for name, tensor in state.items():
        _check_finite(tensor, package, file, name)
        stored[name] = _compact(tensor.detach().cpu())
        if stored[name].dtype not in DTYPES:
            fail(
                package,
                file,
                f"cannot hold {name!r}, a tensor of {_name(tensor.dtype)}",
                "Store floats or int64.",
            )
    return save(stored, metadata={"format": "pt"})


def check_fit(tensors: Mapping[str, Tensor], config: Mapping[str, Any], package: str, part: str) -> None:
    """Compare tensors with those of the network that ``config`` builds: names, shapes, float or integer.

    The network is built on torch's meta device, where tensors have shapes and no memory.

    Raises:
        ModelError: naming the tensor, and what was expected of it.
    """
    from .networks import build_network

    try:
        with torch.device("meta"):
            expected = build_network(config).state_dict()
    except ModelError as error:
        fail(package, network_file(part), f"cannot be followed: {error.what.rstrip('.')}", WRONG)
    file = weights_file(part)
    for name in sorted(expected.keys() - tensors.keys()):
        fail(package, file, f"lacks the tensor {name!r}")
    for name in sorted(tensors.keys() - expected.keys()):
        fail(package, file, f"holds {name!r}, which {config['_target_']} does not have")
    for name, tensor in expected.items():
        found = tensors[name]
        if found.shape != tensor.shape:
            fail(package, file, f"holds {name!r} of shape {tuple(found.shape)}, expected {tuple(tensor.shape)}")
        if found.is_floating_point() != tensor.is_floating_point():
            fail(package, file, f"holds {name!r} as {_name(found.dtype)}, expected {_name(tensor.dtype)}")


def _compact(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        half = tensor.to(torch.float16)
        tensor = half if bool(torch.isfinite(half).all()) else tensor.to(torch.float32)
    # A copy of its own: safetensors refuses tensors that share memory, as views of one parameter do.
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_finite(tensor: Tensor, package: str, file: str, name: str) -> None:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # The extremes are finite when all is: NaN and infinity reach them. One pass, without a tensor of the same size.
    if not all(math.isfinite(float(extreme)) for extreme in torch.aminmax(tensor)):
        count = int((~torch.isfinite(tensor)).sum())
        fail(package, file, f"holds {count} values in {name!r} that are not finite")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
