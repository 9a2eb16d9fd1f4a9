"""Wolleb et al. 2022 on several MR contrasts: whether three lead a classifier-guided model better than one."""
