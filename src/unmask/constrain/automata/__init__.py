"""Automata, which all the rest of this folder makes or walks: over bytes first, over the tokens of a vocabulary last.

`machine` holds those over bytes, `compose` puts them together from parts, `regex` gets them from regexes (`rust` is the
script of its child process); `lift` turns them into an `automaton` over a `vocabulary`; `budget` bounds what all that
may take. It does not know what is asked of a text.
"""
