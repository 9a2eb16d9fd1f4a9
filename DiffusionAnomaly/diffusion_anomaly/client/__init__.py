"""The client of a server that lends its GPU: what travels, the connection, and two ways to use it.

Needs NumPy, SimpleITK and Requests, which Slicer's own Python has; torch never.
"""
