"""Context-free grammars as languages of a bounded depth: text (`lexemes`, `notation`), `rules`, automata (`grower`).

It knows neither tokens nor schemas.
"""
