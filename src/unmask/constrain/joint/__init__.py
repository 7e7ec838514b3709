"""What may stand at the open positions of spans, and which tokens go together there.

`reading` knows what can still be completed, `question` hears what a network says and answers for many positions at
once, `walk` and `grid` find the way through states, `nats` sums and draws. It knows automata over tokens, but not what
they are of, and no rows or canvases.
"""
