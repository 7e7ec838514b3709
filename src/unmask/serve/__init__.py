"""The server: what OpenAI's protocol can say, and what only a diffusion model can give, over HTTP."""
