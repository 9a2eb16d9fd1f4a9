"""What the stages that learn from slabs share: data, a step's slabs, the tasks, losses of a lesion's place, a start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from diffusion_anomaly.models.networks import build_network

from ..data.acquisition import AcquisitionConfig, acquire
from ..data.drawing import Draw, per_sample
from ..data.head_maps import SLAB_SPACING, HeadMaps
from ..data.painting import PaintingConfig, paint
from ..data.slabs import AugmentationConfig, RealStacks, SlabGrid, Slabs
from ..trainer.checkpoints import CheckpointError, averaged_weights, require_fit
from ..trainer.configuration import NetworkDeclaration
from ..trainer.loop import Batch
from ..trainer.optimisation import TrainerConfig

LESION_FROM = 0.4  # share of a pixel from which it counts as lesion
WATCHED = 6  # heads of each kind that validation looks at
ALONE_SHARE = 0.12  # slices without neighbours: at a scan's ends, or of a single picture


class SlabData(BaseModel):
    """What slabs are made from, and how far they vary."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Path | None = Field(
        default=None, description="file that prepare-labels --slabs wrote; without it nothing is painted"
    )
    stacks: Path | None = Field(default=None, description="file that prepare-slabs wrote; without it all is painted")
    restricted: bool = Field(default=False, description="also stacks whose licence restricts the weights' use")
    real_share: float = Field(default=0.0, ge=0, le=1, description="of batches")
    grid: SlabGrid = SlabGrid()
    painting: PaintingConfig = PaintingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    acquisition: AcquisitionConfig = AcquisitionConfig()

    @model_validator(mode="after")
    def _consistent(self) -> SlabData:
        if (self.stacks is None) != (self.real_share == 0.0):
            raise ValueError("give both 'stacks' and a 'real_share' above 0, or neither")
        if self.labels is None and self.real_share < 1.0:
            raise ValueError("give 'labels' to paint heads from, or 'stacks' and a 'real_share' of 1")
        return self


class SlabStageConfig(BaseModel):
    """What the configuration files of all stages that learn from slabs hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    answers: ClassVar[int]  # what the network gives of each pixel of the middle slab

    data: SlabData
    fold: int = Field(ge=1, description="blocks of this many pixels are folded into channels")
    dice_weight: float = Field(
        default=0.5, ge=0, description="of the Dice loss, by the cross-entropy of a lesion's place"
    )
    network: NetworkDeclaration
    start_from: Path | None = Field(default=None, description="weights to begin with (.safetensors or checkpoint.pt)")
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _network_fits(self) -> SlabStageConfig:
        needed = {"in_channels": self.channels * self.data.grid.slabs, "out_channels": self.channels * self.answers}
        for entry, value in needed.items():
            if self.network.get(entry) != value:
                raise ValueError(f"network.{entry} is {self.network.get(entry)}, but fold and slabs need {value}")
        if self.data.grid.size % self.fold:
            raise ValueError(f"fold {self.fold} does not divide slabs of {self.data.grid.size} pixels")
        return self

    @property
    def channels(self) -> int:
        """Of one slab, folded."""
        return self.fold**2


class SlabSource:
    """Scans of slabs, painted or real, on the device of the generator.

    Args:
        config: which ones.
        lesions: whether real ones come with the lesions that readers marked.

    Raises:
        ConfigurationError: when a file is missing or another one.
    """

    def __init__(self, config: SlabData, lesions: bool = False) -> None:
        self.config = config
        self.maps = HeadMaps.load(config.labels, SLAB_SPACING) if config.labels else None
        self.stacks = RealStacks.load(config.stacks, config.grid, config.restricted, lesions) if config.stacks else None
        self.weight = self.stacks.weight if self.stacks else None

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """The seed of a step's slabs: they are made where the network is, which no loader keeps up with."""
        real = bool(rng.random() < self.config.real_share)
        return {"seed": torch.tensor(int(rng.integers(2**62))), "size": torch.tensor(size), "real": torch.tensor(real)}

    def make(self, draw: Draw, real: bool) -> tuple[Slabs, Tensor, Tensor]:
        """Slabs, and the scan of them and its brain mask, see ``acquire``."""
        config = self.config
        if real and self.stacks is not None:
            self.stacks = self.stacks.to(draw.device)
            assert self.weight is not None
            self.weight = self.weight.to(draw.device)
            slabs = self.stacks.draw(self.weight, config.grid, config.augmentation, draw)
        else:
            assert self.maps is not None
            self.maps = self.maps.to(draw.device)
            slabs = paint(self.maps, config.grid, config.painting, draw)
        return slabs, *acquire(slabs, config.acquisition, draw)


class SlabTask(ABC):
    """A stage that learns from slabs: the batch is a seed, and what it stands for is made in the step.

    Args:
        config: of the stage.
    """

    picture_title = ""
    marked = False  # whether it learns from lesions that readers marked

    def __init__(self, config: SlabStageConfig) -> None:
        self.config = config
        torch.manual_seed(config.trainer.seed)
        self.network: nn.Module = build_network(config.network)
        if config.start_from is not None:
            start_from(self.network, config.start_from)
        self.source = SlabSource(config.data, self.marked)

    @abstractmethod
    def examples(self, generator: torch.Generator, size: int, real: bool) -> Batch:
        """What a seed stands for: what the network sees, and what it should answer."""

    @abstractmethod
    def losses(self, network: nn.Module, examples: Batch) -> dict[str, Tensor]:
        """Of what ``examples`` gives; ``loss`` is the one minimised."""

    @abstractmethod
    def picture(self, network: nn.Module, examples: Batch) -> Tensor:
        """``(H', W')`` in [0, 1] of some of what ``examples`` gives and what the network makes of it."""

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        return self.source.batch(rng, size)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        draws = torch.Generator(batch["seed"].device).manual_seed(int(batch["seed"]))
        return self.losses(network, self.examples(draws, int(batch["size"]), bool(batch["real"])))

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Always the same heads: losses of painted and, where there are any, real ones, and pictures."""
        device = next(network.parameters()).device
        scalars, rows = {}, []
        for real in (False, True):
            if (self.source.stacks if real else self.source.maps) is None:
                continue
            generator = torch.Generator(device).manual_seed(int(real))
            examples = self.examples(generator, WATCHED, real)
            kind = "real" if real else "painted"
            scalars |= {f"{kind}_{name}": float(value) for name, value in self.losses(network, examples).items()}
            rows.append(self.picture(network, examples))
        return scalars, {self.picture_title: torch.cat(rows)[None]}


class PlaceTask(SlabTask):
    """A stage whose network gives the log-odds of a lesion in each pixel of the middle slab, and nothing else.

    Its examples are ``seen`` ``(N, K, H, W)`` in [-1, 1]; ``cover`` and ``use``, bool, ``(N, 1, H, W)`` of the middle
    slab: how far a pixel belongs to a lesion, and whether that is known.
    """

    picture_title = "slab, lesion, probability"

    def losses(self, network: nn.Module, examples: Batch) -> dict[str, Tensor]:
        """Cross-entropy and Dice loss of what ``examples`` gives."""
        logit = self.logits(network, examples["seen"])
        entropy, dice = place_losses(logit, examples["cover"], examples["use"])
        return {"loss": entropy + self.config.dice_weight * dice, "cross_entropy": entropy, "dice_loss": dice}

    def logits(self, network: nn.Module, seen: Tensor) -> Tensor:
        """Log-odds of a lesion in the middle slab, ``(N, 1, H, W)``, of slabs ``(N, K, H, W)`` in [-1, 1]."""
        folded = functional.pixel_unshuffle(seen, self.config.fold).contiguous(memory_format=torch.channels_last)
        return functional.pixel_shuffle(network(folded).float(), self.config.fold)

    def picture(self, network: nn.Module, examples: Batch) -> Tensor:
        seen = 0.5 + 0.5 * examples["seen"][:WATCHED, self.config.data.grid.middle]
        probability = self.logits(network, examples["seen"][:WATCHED])[:, 0].sigmoid()
        return torch.cat([torch.cat([*part], 1) for part in (seen, examples["cover"][:WATCHED, 0], probability)])


def leave_alone(image: Tensor, middle: int, draw: Draw) -> Tensor:
    """Some scans without the neighbours of the slab asked about, ``(B, K, H, W)``: 0, as beyond a scan's ends."""
    neighbour = torch.ones(image.shape[1], device=image.device)
    neighbour[middle] = 0.0
    alone = per_sample(draw.chance(ALONE_SHARE).float())
    return image * (1.0 - alone * neighbour[None, :, None, None])


def place_losses(logit: Tensor, cover: Tensor, use: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice loss of where lesions are, in used pixels alone.

    Args:
        logit: ``(B, 1, H, W)`` log-odds.
        cover: ``(B, 1, H, W)`` how far a pixel belongs to a lesion.
        use: ``(B, 1, H, W)`` bool, pixels whose answer is known.

    Returns:
        Scalars. Dice is of the whole batch, so that slabs without lesions count as any others.
    """
    used, target = use.float(), (cover > LESION_FROM).float()
    entropy = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    probability = logit.sigmoid() * used
    overlap = 2.0 * (probability * target).sum() + 1.0
    dice = 1.0 - overlap / (probability.sum() + (target * used).sum() + 1.0)
    return (entropy * used).sum() / used.sum().clamp_min(1.0), dice


def start_from(network: nn.Module, path: Path) -> None:
    """Weights to go on from with a fresh learning rate: a file of weights, or the averaged ones of a run's checkpoint.

    Args:
        network: gets them.
        path: ``*.safetensors``, of any precision, or a run's ``checkpoint.pt``.

    Raises:
        CheckpointError: when the file cannot be read or is of another network.
        FileNotFoundError: when there is no such file.
    """
    if path.suffix == ".safetensors":
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: correct 'start_from', or leave it out.")
        try:
            weights = load(path.read_bytes())
        except Exception as error:  # safetensors has an error class of its own that is no OSError
            raise CheckpointError(f"{path} cannot be read as weights: {error}.") from error
    else:
        weights, _ = averaged_weights(path)
    require_fit(weights, network.state_dict(), path)
    network.load_state_dict({name: value.float() for name, value in weights.items()})
