"""What a decode needs: live bytes traced on meta tensors, margins and speeds learned from finished decodes.

The arithmetic on stored numbers imports no torch. `live_bytes`, `traced_vae` and `profile_trace`, which make
the numbers, do.
"""
