"""What may stand where: regexes, schemas and the like as automata over tokens, on windows with holes.

`spec` is what may be asked, `compile` makes an automaton of it, `holes` holds rows of a canvas to it. Below these are
rooms: `automata` is what the others build on; `schema` and `grammar` make languages, `joint` walks them.

It gets the vocabulary as a list of bytes; it knows no tokenizer, no model and no policy.
"""
