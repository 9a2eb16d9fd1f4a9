"""The first experiment of Pinaya et al. 2022 on MedNIST; ``docs/mednist.md`` says how to repeat it and what it gave."""
