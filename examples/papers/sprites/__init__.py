"""Sprites in head CT (Pinaya et al. 2022, section 3.1); ``docs/papers/pinaya-sprites.md`` says what came out."""
