"""The open stack for diffusion language models: train, decode, infill, refine, score and serve them."""

__version__ = "0.1.0"
