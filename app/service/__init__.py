"""The processes of one host and the parts they share: supervisor, API keys, webhooks, logs, metrics.

Imports no torch and knows neither routes nor SQL.
"""
