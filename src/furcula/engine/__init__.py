"""Runs a flow in one process. `plan` decides, `steps` handle, `queue` waits, `director` is in charge."""
