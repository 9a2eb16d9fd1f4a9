"""Two examinations of one patient: what is new, grown, shrunk or gone since the prior one."""
