"""Chest films (Wolleb et al. 2022); ``docs/papers/wolleb-chest.md`` says what came out."""
