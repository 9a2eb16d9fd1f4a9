"""``_`` as in Slicer's module template, and the plain text where Slicer's translations are not there.

``slicer.i18n`` is part of the full application only; the MRML half of this library also runs with the ``slicer-core``
package.
"""

from __future__ import annotations

try:
    from slicer.i18n import tr
except ImportError:

    def tr(text: str) -> str:
        return text


__all__ = ["tr"]
