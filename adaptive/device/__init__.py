"""What memory a device has: the NVIDIA driver, torch's allocator, the host, and the processes on a GPU.

It reads devices and decides nothing. Imports only the library's errors and types.
"""
