"""Unsupervised detection on brain MR with a VQ-VAE and the options of Pinaya et al. 2022."""
