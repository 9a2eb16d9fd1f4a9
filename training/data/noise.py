"""How strong and how coarse the noise is that restorers learn to remove; apart from what reads images."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class NoiseConfig(BaseModel):
    """Gaussian noise on a coarse grid (Kascenas et al. 2022, section 3.1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deviation: float = Field(default=0.2, gt=0, description="at the highest level, in units of the normalised range")
    cell: tuple[int, int] = Field(default=(8, 8), description="pixels between the grid's points, from and to")

    @field_validator("cell")
    @classmethod
    def _range(cls, cell: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= cell[0] <= cell[1]:
            raise ValueError(f"found {list(cell)}, expected a range that starts at 1 or more")
        return cell
