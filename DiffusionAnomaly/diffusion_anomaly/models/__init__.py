"""Model packages: a folder in MONAI Bundle layout that declares its networks, and holds only data.

Loading is declarative. JSON names classes of an allow-list and their arguments, safetensors hold the weights,
and the manifest holds the SHA256 and size of every other file, so that a package is either exactly what was
written or an error that names the file. Slicer's own Python lists packages with this module, so importing it
stays light: torch, MONAI, jsonschema and NumPy are imported by the functions that need them.

``manifest`` reads without trusting · ``declaration`` is the schemas · ``package`` opens and lists · ``weights`` are the
tensors · ``verification`` checks all of it · ``metadata`` and ``writing`` make new packages · ``networks``,
``schedule`` and ``loading`` are what runs.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Models(ModuleType):
    """This folder, which shares its name with the package's public function ``models()``.

    Importing a module of a folder makes the folder an attribute of the package, so the folder answers for the function.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from .package import available

        return available(*arguments, **options)


sys.modules[__name__].__class__ = _Models
