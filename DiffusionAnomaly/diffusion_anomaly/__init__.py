"""DiffusionAnomaly's engine: a scan in, calibrated heat and mask out. Knows neither Slicer nor Qt."""

__version__ = "0.1.0"
