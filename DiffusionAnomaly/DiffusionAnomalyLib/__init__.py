"""The Slicer half of DiffusionAnomaly: what knows Slicer, Qt or MRML. It never imports torch.

Each line imports only from lines below it, and within a line nothing goes in a circle; a test reads the imports:

- ``panel``: the widgets. Its parts take a context and the siblings that they name; only ``panel.panel`` knows them all.
- ``parameters``: what the user sets, as Slicer's parameter node.
- ``detection``: from a volume node to result nodes, the one way in for panel, scripts and tests.
- ``scene``: volumes out of MRML, results into it and out of it again.
- ``progresstext``, ``sampledata``: what a job is doing and how long it takes, in words; the scan that comes along.
- ``process``: the worker, its queue and folders, questions to the engine, the installation of packages.
- ``choices``: methods, models and devices to choose from, read from the engine and the model packages.
- ``settings``, ``translation``: what is remembered between sessions; ``_``.

Only ``panel``, ``parameters`` and ``process.qtprocess`` need the full application; the rest runs with the
``slicer-core`` package too, which is how it is tested.
"""
