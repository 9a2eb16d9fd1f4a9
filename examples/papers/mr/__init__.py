"""Unsupervised detection on brain MR (Pinaya et al. 2022, section 3.2); ``docs/papers/pinaya-mr.md`` says what came out."""
