"""A package's tensors: safetensors bytes in and out, and whether they are what the declared network expects.

The only part of the packages that imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..errors import ModelError
from ..text import counted
from .declaration import WRONG, network_file, weights_file
from .manifest import fail

# Of a tensor's name, type, shape and place in the header of a file, generously.
_HEADER_BYTES = 1000
_MOST_TENSORS = 20_000

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int64)


def read_tensors(data: bytes, package: str, file: str) -> dict[str, Tensor]:
    """Tensors by name, of the types a package may hold and with finite values.

    Raises:
        ModelError: naming the file and the tensor.
    """
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    if header.count(b'"dtype"') > _MOST_TENSORS:
        fail(package, file, f"holds more than {_MOST_TENSORS} tensors")
    try:
        tensors = load(data)
    except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError, OverflowError) as error:
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


def fitting_network(
    config: Mapping[str, Any], read: Callable[[int], Mapping[str, Tensor]], package: str, part: str
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network that ``config`` declares, without memory, and its weights: names, shapes, float or integer compared.

    The network is built on torch's meta device, where tensors have shapes and no memory, and says how large its weights
    can be before they are read.

    Args:
        config: the network's configuration.
        read: gives the tensors, from a file of at most so many bytes.
        package, part: the names used in errors.

    Raises:
        ModelError: naming the tensor, and what was expected of it.
    """
    from .networks import build_network

    try:
        with torch.device("meta"):
            network = build_network(config)
    except ModelError as error:
        fail(package, network_file(part), f"cannot be followed: {error.what.rstrip('.')}", WRONG)
    expected = network.state_dict()
    tensors = read(sum(8 * tensor.numel() + _HEADER_BYTES for tensor in expected.values()) + _HEADER_BYTES)
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
    return network, {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}


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
        fail(
            package,
            file,
            f"holds {counted(count, 'value')} in {name!r} that {'is' if count == 1 else 'are'} not finite",
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
