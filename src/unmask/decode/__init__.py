"""How a canvas is filled: windows, policies, the loop, and published decoders by name."""
