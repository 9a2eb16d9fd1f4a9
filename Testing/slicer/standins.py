"""Stand-ins for the parts of Slicer that ``slicer-core`` lacks: the panel's own code then runs without a window."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock


def install() -> None:
    """Put them into ``sys.modules``. For a process of its own: nothing is taken away again."""
    import slicer

    qt = MagicMock(name="qt")
    sys.modules["qt"] = qt
    for name, contents in {
        "i18n": {"tr": _same, "translate": lambda context, text: text},
        "parameterNodeWrapper": {"parameterNodeWrapper": _same, "parameterPack": _same, "WithinRange": MagicMock()},
        "ScriptedLoadableModule": {
            f"ScriptedLoadableModule{kind}": type(kind or "Module", (), {"__init__": lambda self, *parent: None})
            for kind in ("", "Widget", "Logic", "Test")
        },
    }.items():
        module = ModuleType(f"slicer.{name}")
        module.__dict__.update(contents)
        sys.modules[module.__name__] = module
        setattr(slicer, name, module)
    slicer.app = MagicMock(name="app")
    slicer.qMRMLSubjectHierarchyComboBox = MagicMock(name="qMRMLSubjectHierarchyComboBox")


def widgets() -> Any:
    """The form: every widget takes every call, and those whose values are read have some."""
    ui = MagicMock(name="ui")
    for table in (ui.queueTable, ui.findingsTable):
        table.verticalHeader.return_value.defaultSectionSize = 20
        table.horizontalHeader.return_value.sizeHint.return_value.height = 20
        table.frameWidth = 1
    ui.show3DCheckBox.checked = False
    ui.stepsSlider.value = 0
    return ui


def said(label: Any) -> str:
    """What a label was last told to show."""
    return label.setText.call_args.args[0]


def parameters(**chosen: Any) -> SimpleNamespace:
    """A parameter node that is none, with the defaults of the real one."""
    from DiffusionAnomalyLib import parameters as real

    node = SimpleNamespace(inputVolume=None, brainMask=None, brainSegment="", result=None)
    for name, kind in (("method", "Method"), ("run", "Run"), ("output", "Output")):
        pack = getattr(real, f"{kind}Parameters")
        setattr(node, name, SimpleNamespace(**{field: getattr(pack, field) for field in pack.__annotations__}))
    node.__dict__.update(chosen)
    return node


def _same(thing: Any) -> Any:
    return thing
