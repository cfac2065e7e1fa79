"""What a client can call: the public surface, and how each part of it answers."""
