"""Training of DiffusionAnomaly's models: imports the engine, never the other way round."""
