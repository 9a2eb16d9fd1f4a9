"""Many scans: from a folder, a table or a BIDS data set to a result each, with tables and quality control over all.

Below the command line and above the detection: what a scan's result is and how it is written stays in the wings below.
"""
