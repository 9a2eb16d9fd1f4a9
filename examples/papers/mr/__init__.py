"""Unsupervised detection on brain MR (Pinaya et al. 2022); ``docs/papers/pinaya-mr.md`` says what came out."""
