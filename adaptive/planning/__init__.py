"""Decides what to do: the rung a decode takes, the cut after a failure, and where a pipeline's weights live.

Pure arithmetic on bytes and seconds. Imports `memory` and the library's types; no torch, no devices.
"""
