"""The processes of one host and what they share: supervisor, API keys, webhooks, logs, metrics. No torch."""
