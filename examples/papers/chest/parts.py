"""The two parts of the experiment: where their films come from, what was trained on them, and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..steps import CONFIGS, DATA, PACKAGES, RUNS, Step, package, prepare, training

FILMS = DATA / "chest-xray"


@dataclass(frozen=True)
class Part:
    """One question asked of chest films.

    Attributes:
        name: of the part.
        question: in words.
        arrays: the films, see ``training.data.pictures``.
        label, patient, strata: entries of that file.
        score: what of the anomaly map is a film's score, chosen on validation films: one of ``labelled.SHARES``.
        credit: what the films' licence asks for.
    """

    name: str
    question: str
    arrays: Path
    label: str
    patient: str
    score: str
    credit: str
    strata: str | None = None

    @property
    def films(self) -> Path:
        """A folder a split, and ``labels.csv``."""
        return RUNS / f"chest-{self.name}-films"

    @property
    def model(self) -> Path:
        return PACKAGES / f"chest-{self.name}-guided"

    @property
    def steps(self) -> list[Step]:
        """Everything from the films to the model package."""
        stratum = ("--strata", self.strata) if self.strata else ()
        entries = ("--label", self.label, "--patient", self.patient, *stratum)
        unpack = ("training", "unpack", str(self.arrays), str(self.films), *entries)
        guided, classifier = (f"chest-{self.name}-{stage}" for stage in ("guided", "classifier"))
        return [
            Step(unpack, self.films / "labels.csv"),
            prepare(CONFIGS / f"prepare-chest-{self.name}.yaml", RUNS / f"chest-{self.name}"),
            training("diffusion", CONFIGS / f"{guided}.yaml", RUNS / guided),
            training("classifier", CONFIGS / f"{classifier}.yaml", RUNS / classifier),
            package(CONFIGS / f"package-{guided}.yaml", guided, PACKAGES),
        ]


PARTS = {
    part.name: part
    for part in (
        Part(
            "pneumonia",
            "pneumonia against normal, children",
            FILMS / "kermany-pneumonia-128.npz",
            label="pneumonia",
            patient="person",
            score="mean",
            credit="Films: Kermany et al. 2018, https://doi.org/10.17632/rscbjbr9sj, CC BY 4.0, made smaller; this "
            "picture: CC BY 4.0",
        ),
        Part(
            "effusion",
            "pleural effusion against no finding",
            FILMS / "nih-effusion-64.npz",
            label="effusion",
            patient="patient",
            score="mean",
            credit="Films: NIH ChestX-ray14, NIH Clinical Center (Wang et al. 2017), made smaller",
            strata="view",
        ),
    )
}
