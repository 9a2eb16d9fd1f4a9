"""Background processes: the worker and its queue, questions to the engine, and the installation of packages."""
