"""The child process that `compile_in_child` starts: a question from standard input, an answer to standard output."""

import sys

from unmask.constrain.compile import answer

if __name__ == "__main__":
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read()))
