"""What each client may use at a time: connections, memory, threads, picture decoding. No client can take it
all."""
