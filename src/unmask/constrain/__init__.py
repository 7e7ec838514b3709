"""What may stand where: regexes, schemas and the like as automata over tokens, on windows with holes.

It gets the vocabulary as a list of bytes; it knows no tokenizer, no model and no policy.
"""
