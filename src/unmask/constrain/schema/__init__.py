"""JSON schemas as languages of JSON texts; `writer` is the way in.

The words of schemas (`keywords`), where they point (`references`), schemas made of schemas (`combine`, `negate`,
`distinct`), and from what is then left of each type to automata: `strings`, `numerals`, both by their keywords
(`scalars`), `names` of members, `containers`. It knows neither tokens nor grammars.
"""
