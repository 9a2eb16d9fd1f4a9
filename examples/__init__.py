"""Experiments that stand beside the project: each is a package of its own that imports the engine and the training."""
