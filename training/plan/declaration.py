"""A plan: which stages there are, in whose folders they leave what they make, and which need others first."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..stages import TRAININGS
from ..trainer.configuration import ConfigurationError

PACKAGE = "package"
NAME = r"^[A-Za-z0-9][\w.-]*$"  # a file's name everywhere


class PlannedStage(BaseModel):
    """One stage, which is one command in a process of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = Field(pattern=f"^({'|'.join([*TRAININGS, PACKAGE])})$")
    config: Path
    needs: list[str] = Field(default=[], description="stages that have to be finished first")
    weight: float = Field(default=1.0, gt=0, description="of a training's share in the minutes that all may take")
    changes: dict[str, Any] = Field(default={}, description="entries in place of those of the configuration")


class Plan(BaseModel):
    """The configuration file of ``all``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: Path = Field(default=Path("runs"), description="a training's run folder is in here and has its name")
    packages: Path = Field(default=Path("runs/packages"), description="where packages go")
    stages: dict[Annotated[str, Field(pattern=NAME)], PlannedStage | None] = Field(
        description="by name, in the order in which they begin; null takes one of the base's away"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        stages = self.present
        if not stages:
            raise ValueError("stages: there is none")
        for name, stage in stages.items():
            unknown = [needed for needed in stage.needs if needed not in stages]
            if unknown:
                raise ValueError(f"stages.{name}.needs: there is no stage {', '.join(unknown)}")
        try:
            TopologicalSorter({name: stage.needs for name, stage in stages.items()}).prepare()
        except CycleError as error:
            raise ValueError(f"stages: {' needs '.join(reversed(error.args[1]))}") from error
        return self

    @property
    def present(self) -> dict[str, PlannedStage]:
        return {name: stage for name, stage in self.stages.items() if stage is not None}

    def chosen(self, only: Iterable[str]) -> dict[str, PlannedStage]:
        """The stages named, or all of them.

        Raises:
            ConfigurationError: when there is none of a name.
        """
        wanted, stages = set(only), self.present
        unknown = sorted(wanted - stages.keys())
        if unknown:
            raise ConfigurationError(f"The plan has no stage {', '.join(unknown)}; it has {', '.join(stages)}.")
        return {name: stage for name, stage in stages.items() if not wanted or name in wanted}

    def before(self, name: str) -> set[str]:
        """All that a stage needs, and what that needs."""
        stages, found, left = self.present, set(), [name]
        while left:
            for needed in stages[left.pop()].needs:
                if needed not in found:
                    found.add(needed)
                    left.append(needed)
        return found
