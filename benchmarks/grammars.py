"""What the depth of a grammar costs: states, and compiling it for a vocabulary.

Arithmetic has one kind of bracket, JSON two; the small language nests statements and, inside of them, values. "Reads"
is the share of random texts of the grammar itself (each alternative as likely as the next, at most 200 letters) that
belong to the automaton of that depth.

    python benchmarks/grammars.py --out benchmarks/results/grammars
"""

import random
import time
from typing import Any

from report import parser, report

from unmask.base.errors import OverBudget
from unmask.constrain.automata.budget import Budget, Meter
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import compile_here
from unmask.constrain.grammar.notation import read
from unmask.constrain.grammar.rules import Alt, Letters, Node, Pattern, Ref, Repeat, Rules, Seq, Text
from unmask.constrain.spec import Constraint, Grammar
from unmask.lm.load import load

GRAMMARS = {
    "arithmetic": r"""
        start: product (("+" | "-") product)*
        product: atom (("*" | "/") atom)*
        atom: "-" atom | "(" start ")" | "0" | "1".."9" ("0".."9")~0..3
    """,
    "JSON": r"""
root   ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( pair ("," ws pair)* )? "}" ws
pair   ::= string ":" ws root
array  ::= "[" ws ( root ("," ws root)* )? "]" ws
string ::= "\"" ( [^"\\\x00-\x1F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} ) )* "\"" ws
number ::= "-"? ( "0" | [1-9] [0-9]{0,15} ) ( "." [0-9]{1,15} )? ( [eE] [-+]? [0-9]{1,3} )? ws
ws     ::= [ \t\n]?
    """,
    "language": r"""
        start: statement+
        statement: name " = " value ";\n" | "if (" value ") {\n" statement+ "}\n" | call ";\n"
        call: name "(" [value (", " value)*] ")"
        value: value (" + " | " * " | " < ") value | "!" value | name | "0".."9" | "(" value ")" | value "[" value "]"
        name: "a".."z" ("a".."z" | "_")~0..15
    """,
}
DEPTHS = (0, 1, 2, 3, 4, 6, 8, 16, 32)
TEXTS, LETTERS = 300, 200


def drawn(rules: Rules, chance: random.Random) -> str | None:
    """A random text of a grammar; None where it becomes too long."""
    out, steps = "", 0
    todo: list[Node] = [Ref(rules.start)]
    while todo and len(out) <= LETTERS and (steps := steps + 1) < 20 * LETTERS:
        node: Node = todo.pop()
        match node:
            case Text(text):
                out += text
            case Letters(ranges):
                first, last = chance.choice(ranges)
                out += chr(chance.randint(first, min(last, first + 90)))
            case Ref(name):
                todo.append(rules.rules[name])
            case Seq(parts):
                todo += reversed(parts)
            case Alt(ways):
                todo.append(chance.choice(ways))
            case Repeat(inner, low, high):
                count = low
                while (high is None or count < high) and chance.random() < 0.5:
                    count += 1
                todo += [inner] * count
            case Pattern():
                raise AssertionError("the grammars here have no regexes")
    return None if todo or len(out) > LETTERS else out


def costs(words: Vocabulary) -> list[dict[str, Any]]:
    rows = []
    for name, text in GRAMMARS.items():
        chance = random.Random(0)
        rules = read(text)
        texts = [found for _ in range(20 * TEXTS) if (found := drawn(rules, chance)) is not None][:TEXTS]
        for depth in DEPTHS:
            asked = Grammar(text, depth)
            began = time.process_time()
            try:
                found = compile_here(Constraint(body=asked), words, Budget(time_s=60))
            except OverBudget as error:
                rows.append({**dict.fromkeys(rows[0], "-"), "grammar": name, "depth": depth, "states": str(error)[:60]})
                break
            spent = 1e3 * (time.process_time() - began)
            language = asked.language(Meter(Budget(time_s=60)))
            reads = sum(language.accepts(one.encode()) for one in texts) / len(texts)
            rows.append(
                {
                    "grammar": name,
                    "depth": depth,
                    "states": found.size,
                    "compile (ms)": spent,
                    "tables (MB)": found.num_bytes / 1e6,
                    "reads (%)": 100 * reads,
                }
            )
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2", help="whose vocabulary")
    args = options.parse_args()
    lm = load(args.model)
    assert lm.tokenizer is not None
    words = Vocabulary(lm.tokenizer.token_bytes, lm.tokenizer.vocab.ends)
    _ = words.levels
    report(args.out, "What the depth of a grammar costs", {f"{len(words)} tokens": costs(words)})


if __name__ == "__main__":
    main()
