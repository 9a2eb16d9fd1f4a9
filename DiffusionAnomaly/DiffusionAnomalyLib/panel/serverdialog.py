"""What the panel asks about servers: address and token of a new one, and whether scans may go there."""

from __future__ import annotations

import qt
import slicer

from diffusion_anomaly.errors import EngineError

from ..process import remote
from ..progresstext import plain
from ..settings import Settings
from ..translation import tr as _


def addServer(settings: Settings) -> str:
    """Have the user set a server up; its device, or empty when the user did not."""
    dialog = ServerDialog(settings)
    try:
        return dialog.device if dialog.widget.exec_() == qt.QDialog.Accepted else ""
    finally:
        dialog.widget.deleteLater()


def mayLeave(device: str, settings: Settings) -> bool:
    """Whether scans may go where a device is; for a server the user is asked, once."""
    server = remote.serverOf(device, settings)
    if server is None or server.agreed:
        return True
    if not slicer.util.confirmOkCancelDisplay(plain(remote.question(server)), _("The scan leaves this computer")):
        return False
    remote.agree(server.name, settings)
    return True


class ServerDialog:
    """Name, address, token and fingerprint of a server.

    Args:
        settings: where the server is kept.

    Attributes:
        widget: the ``QDialog``.
        device: of the server, once it is set up.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.device = ""
        self.widget = qt.QDialog(slicer.util.mainWindow())
        self.widget.setWindowTitle(_("Add a server"))
        form = qt.QFormLayout(self.widget)
        about = qt.QLabel(
            _("A server runs the detection instead of this computer. Whoever runs it gives you all of this.")
        )
        about.setWordWrap(True)
        form.addRow(about)
        self.name = self._line(form, _("Name"), _("as it will be listed"))
        self.address = self._line(form, _("Address"), "https://gpu.example.org:8443")
        self.token = self._line(form, _("Token"), "da_…")
        self.token.setEchoMode(qt.QLineEdit.Password)
        self.fingerprint = self._line(form, _("Fingerprint"), _("of its certificate; empty if an authority signed it"))
        self.problem = qt.QLabel()
        self.problem.setWordWrap(True)
        form.addRow(self.problem)
        buttons = qt.QDialogButtonBox()  # PythonQt would take the buttons for the orientation
        buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
        buttons.connect("accepted()", self.accept)
        buttons.connect("rejected()", self.widget.reject)
        form.addRow(buttons)

    def accept(self) -> None:
        """Set the server up and close; what is wrong is shown instead."""
        server = remote.RemoteServer(
            self.name.text.strip(), self.address.text.strip(), self.token.text, self.fingerprint.text
        )
        try:
            remote.add(server, self._settings)
        except EngineError as error:
            self.problem.setText(plain(str(error)))
        else:
            self.device = server.device
            self.widget.accept()

    def _line(self, form: object, title: str, placeholder: str) -> object:
        line = qt.QLineEdit()
        line.setPlaceholderText(placeholder)
        line.setMinimumWidth(320)
        form.addRow(title, line)  # type: ignore[attr-defined]
        return line
