"""The plain U-Net is MONAI's BasicUNet: same tensors, same numbers, without MONAI."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from monai.networks.nets import BasicUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

from diffusion_anomaly.detection.brain_network import FOLD, brain_logits
from diffusion_anomaly.models.networks import build_network
from diffusion_anomaly.models.unet import PlainUNet

SHAPES = [
    (2, (64, 32), (12, 4), (16, 16, 32, 64, 64, 16)),
    (2, (50, 37), (3, 2), (8, 16, 16, 32, 16, 8)),
    (3, (32, 35, 33), (8, 8), (8, 8, 8, 8, 8, 8)),
    (1, (80,), (1, 1), (8, 8, 8, 8, 8, 16)),
]


@pytest.mark.parametrize(("dims", "size", "channels", "features"), SHAPES)
@pytest.mark.parametrize("low_precision", [False, True])
def test_it_holds_and_computes_what_monais_does(
    dims: int, size: tuple[int, ...], channels: tuple[int, int], features: tuple[int, ...], low_precision: bool
) -> None:
    torch.manual_seed(0)
    own = PlainUNet(dims, *channels, features)
    torch.manual_seed(0)
    monai = BasicUNet(dims, *channels, features)
    assert list(own.state_dict()) == list(monai.state_dict())
    assert all(torch.equal(tensor, monai.state_dict()[name]) for name, tensor in own.state_dict().items())
    image = torch.randn(2, channels[0], *size)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=low_precision):
        assert torch.equal(own(image), monai(image))


def test_it_learns_as_monais_does() -> None:
    gradients = []
    for kind in (PlainUNet, BasicUNet):
        torch.manual_seed(0)
        network = kind(2, 3, 2, (8, 8, 16, 16, 16, 8))
        network(torch.randn(2, 3, 32, 48)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(own, monai) for own, monai in zip(*gradients, strict=True))


def test_what_it_cannot_do_is_left_to_monai() -> None:
    config = {"_target_": "BasicUNet", "spatial_dims": 2, "features": [8, 8, 8, 8, 8, 8]}
    assert isinstance(build_network(config), PlainUNet)
    assert isinstance(build_network({**config, "norm": "batch"}), BasicUNet)


@pytest.mark.parametrize(("argument", "value"), [("spatial_dims", 4), ("features", (8, 8, 8))])
def test_it_refuses_what_is_no_u_net(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=argument):
        PlainUNet(**{argument: value})  # type: ignore[arg-type]


def test_folding_blocks_into_channels_is_monais() -> None:
    class Seen(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            self.image = image
            return image * torch.arange(1.0, 1 + FOLD**3).view(1, -1, 1, 1, 1)

    image, network = torch.randn(2, 1, 4, 6, 8), Seen()
    found = brain_logits(network, image)
    assert torch.equal(network.image, pixelunshuffle(image, 3, FOLD))
    assert torch.equal(found, pixelshuffle(network(network.image), 3, FOLD))


def test_the_default_model_and_the_brain_mask_need_no_monai() -> None:
    code = """
import sys
from diffusion_anomaly.models.loading import load_model, load_network
from diffusion_anomaly.models.package import open_bundle
load_network(open_bundle("brain-mask"), "brain")
load_model(open_bundle("flair-localise"), "cpu", "float32")
print("monai" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
