"""The Slicer half of DiffusionAnomaly: what knows Slicer, Qt or MRML. It never imports torch.

Background work: ``process`` · ``processtree`` · ``qtprocess`` · ``environment`` · ``workspace`` · ``job`` · ``queue``.
Results in MRML: ``volumes`` · ``results`` · ``segmentation`` · ``display`` · ``findingsTable`` · ``provenance`` ·
``livethreshold`` · ``exporting``. Choices: ``choices`` · ``timing`` · ``parameters``. Around them: ``dependencies``,
``detection``, and ``panel`` for the widgets.

Only ``qtprocess``, ``parameters``, ``dependencies`` and ``panel`` need the full application; the rest runs with the
``slicer-core`` package too, which is how it is tested.
"""
