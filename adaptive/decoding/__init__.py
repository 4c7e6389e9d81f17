"""The loop around a stream: read memory, plan, decode a chunk, shrink after an out-of-memory, report.

Imports everything below it: planning, memory, streams, families and devices.
"""
