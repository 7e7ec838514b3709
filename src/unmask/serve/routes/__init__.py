"""The routes, one file for each kind; `ROUTERS` is all of them."""

from unmask.serve.routes import chat, completions, edits, holes, likelihood, llama, operations, tokens

ROUTERS = [module.router for module in (chat, completions, edits, holes, likelihood, llama, operations, tokens)]
