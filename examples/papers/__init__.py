"""The experiments of the two papers, on data at hand: ``python -m examples.papers --help`` lists them."""
