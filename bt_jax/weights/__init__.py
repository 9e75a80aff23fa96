"""Reading and writing encoders: ours, and other libraries'."""
