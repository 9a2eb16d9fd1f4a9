"""The stages that train a network: a configuration and a task each, which the one trainer runs."""
