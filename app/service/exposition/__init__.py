"""What Prometheus reads: counters of events, gauges, and which process exports them."""
