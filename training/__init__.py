"""Training of DiffusionAnomaly's models: imports the engine, never the other way round."""

import time

STARTED = time.monotonic()
"""When this process began, but for Python itself: libraries that take their time to load count in its minutes."""
