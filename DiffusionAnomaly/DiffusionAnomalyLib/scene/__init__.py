"""Volumes out of MRML, and results into MRML and out of it again."""
