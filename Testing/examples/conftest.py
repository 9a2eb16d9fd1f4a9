"""The examples train too: on the CPU with one thread, as the tests of the training do."""

from Testing.training.conftest import on_the_cpu, one_thread

__all__ = ["on_the_cpu", "one_thread"]
