"""The parts of the panel. They share a context and name the siblings that they need; none knows the panel itself."""
