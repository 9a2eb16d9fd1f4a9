"""The panel without Qt: the form, the code that uses it and the parameters agree, and nothing of it loads torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from DiffusionAnomalyLib.process.environment import MODULE_FOLDER

LIBRARY = MODULE_FOLDER / "DiffusionAnomalyLib"
FORM = ElementTree.parse(MODULE_FOLDER / "Resources" / "UI" / "DiffusionAnomaly.ui").getroot()

# Their lists come from the machine and the packages, so code fills them and writes the parameter.
FILLED_BY_CODE = {
    "segmentComboBox": "brainSegment",
    "methodComboBox": "method.name",
    "modelComboBox": "method.model",
    "presetComboBox": "method.preset",
    "stepsSlider": "method.steps",
    "deviceComboBox": "run.device",
    "resultSelector": "result",
    "priorComboBox": "prior",
}
# What belongs to a result is held by its own nodes: the colours by the display, the threshold by the anomaly map.
NO_PARAMETER = {"colorSelector", "thresholdSlider"}

INPUTS = {
    "QCheckBox",
    "QComboBox",
    "QDoubleSpinBox",
    "QSpinBox",
    "ctkSliderWidget",
    "qMRMLColorTableComboBox",
    "qMRMLNodeComboBox",
}
CONTROLS = INPUTS | {"QPushButton", "QTableWidget", "QPlainTextEdit", "QProgressBar"}
WITHOUT_QT = sorted(
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts)
    for path in LIBRARY.rglob("*.py")
    if path.parent.name != "panel"
    and not re.search(r"^(import qt|from slicer.parameterNodeWrapper)", path.read_text("utf-8"), re.M)
)


def widgets() -> dict[str, ElementTree.Element]:
    return {element.attrib["name"]: element for element in FORM.iter("widget")}


def text(widget: ElementTree.Element, name: str) -> str:
    """A property's text; empty without it."""
    for entry in widget.findall("property"):
        if entry.attrib["name"] == name:
            return "".join(entry.itertext()).strip()
    return ""


def parameters() -> set[str]:
    """Every parameter's dotted name, read from the source: the wrapper itself exists only inside Slicer."""
    classes = {
        node.name: {
            line.target.id: ast.unparse(line.annotation)
            for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
        for node in ast.parse((LIBRARY / "parameters.py").read_text("utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    names = set()
    for name, kind in classes["DiffusionAnomalyParameterNode"].items():
        names |= {f"{name}.{inner}" for inner in classes[kind]} if kind in classes else {name}
    return names


def test_every_widget_that_the_code_uses_is_in_the_form() -> None:
    used = set()
    for path in (*LIBRARY.rglob("*.py"), MODULE_FOLDER / "DiffusionAnomaly.py"):
        used |= set(re.findall(r"\bself\._?ui\.(\w+)", path.read_text("utf-8")))
        used |= set(re.findall(r"(?<![\w.])ui\.(\w+)", path.read_text("utf-8")))
    assert len(used) > 30
    assert used - widgets().keys() == set()


def test_labels_with_links_show_them_as_links() -> None:
    source = "\n".join(path.read_text("utf-8") for path in LIBRARY.rglob("*.py"))
    linked = set(re.findall(r'ui\.(\w+)\.connect\("linkActivated', source))
    assert len(linked) > 2
    assert [name for name in linked if text(widgets()[name], "textFormat") == "Qt::PlainText"] == []


def test_every_control_is_used_and_explains_itself() -> None:
    source = "\n".join(path.read_text("utf-8") for path in LIBRARY.rglob("*.py"))
    controls = {name: widget for name, widget in widgets().items() if widget.attrib["class"] in CONTROLS}
    assert [name for name, widget in controls.items() if len(text(widget, "toolTip")) < 10] == []
    unbound = [name for name, widget in controls.items() if not text(widget, "SlicerParameterName")]
    assert [name for name in unbound if f"ui.{name}" not in source] == []


def test_every_input_is_in_the_parameter_node() -> None:
    bound = {name: text(widget, "SlicerParameterName") for name, widget in widgets().items()}
    inputs = {name for name, widget in widgets().items() if widget.attrib["class"] in INPUTS}
    assert {name for name in inputs if not bound[name]} == FILLED_BY_CODE.keys() | NO_PARAMETER
    named = [name for name in bound.values() if name] + list(FILLED_BY_CODE.values())
    assert len(named) == len(set(named))
    assert set(named) == parameters()


def test_every_node_selector_gets_the_scene() -> None:
    receivers = {
        connection.findtext("receiver")
        for connection in FORM.iter("connection")
        if connection.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)"
    }
    selectors = {name for name, widget in widgets().items() if widget.attrib["class"].startswith("qMRML")}
    assert receivers == selectors - {"DiffusionAnomaly"}


def test_every_sentence_for_people_can_be_translated() -> None:
    """A text that is shown by a widget's setter comes through the translation function, or from data."""
    setters = {"setText", "setToolTip", "setWindowTitle"}
    bare = [
        f"{path.name}:{node.lineno}"
        for path in LIBRARY.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in setters
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.strip()
    ]
    assert bare == []


def test_slicers_own_process_meets_neither_torch_nor_monai() -> None:
    pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")
    assert {"detection", "choices", "process.dependencies", "scene.results", "scene.exporting"} <= set(WITHOUT_QT)
    code = f"""
import sys
sys.path.insert(0, {str(MODULE_FOLDER)!r})
for name in {WITHOUT_QT!r}:
    __import__("DiffusionAnomalyLib." + name)
from DiffusionAnomalyLib import choices
from DiffusionAnomalyLib.process import dependencies
from DiffusionAnomalyLib.scene import livethreshold, volumes
from DiffusionAnomalyLib.settings import MemorySettings
import numpy as np
for guide in choices.methods(MemorySettings()):
    for summary in choices.models(guide.name, MemorySettings()):
        choices.card(summary, ""), choices.licence(summary)
dependencies.missing()
livethreshold.LiveThreshold(volumes.onGrid(np.ones((3, 4, 5), np.float32), np.eye(4))).at(1.0, 0.0)
print(sorted({{"torch", "monai"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr
