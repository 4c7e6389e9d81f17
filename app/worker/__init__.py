"""Runs claimed jobs on one device, from claim to mp4: the loop, one job's run, the model, decoding, transfer.

Imports torch. Knows the job table through `JobStore`; must not know HTTP.
"""
