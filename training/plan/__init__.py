"""All stages by one command: what depends on what, how long each may take, and a process for each."""
