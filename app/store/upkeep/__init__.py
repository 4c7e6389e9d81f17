"""Care of a database: its check from outside; expiry of what jobs left; counters and the events they count.

health           read-only check of a database, for `framefit doctor`
retention        expiry and deletion of results
counters         the stored counters, and which API process exports them
event_retention  deletion of events that were counted
"""
