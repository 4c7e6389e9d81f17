"""What to do: which rung a decode takes, what follows a failure, and where a pipeline's weights lie.

Pure arithmetic on bytes and seconds. Imports `memory` and the library's types; no torch, no devices.
"""
