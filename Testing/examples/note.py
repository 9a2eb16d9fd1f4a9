"""A command for the tests of steps: notes that it ran, does nothing, or fails."""

import sys
from pathlib import Path

path, word = Path(sys.argv[1]), sys.argv[2]
if word == "fail":
    sys.exit(3)
if word == "done":
    with path.open("a") as file:
        file.write("done\n")
