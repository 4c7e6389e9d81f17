"""The loop around a stream: reads memory, plans, decodes a chunk, adapts the next one, and reports.

Imports planning, memory, streams, families and devices.
"""
