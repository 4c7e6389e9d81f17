"""Why processes of the service ended: the worker's last end, and the end of the whole service's last run.

Imports no torch, no SQL and no other room of the service but `parent_death`.
"""
