"""Commands of `abstractinator`, one module each.

A module is named like its command (with _ for -) and has:

  add_arguments(parser): Adds the arguments of the command to an argparse
    parser.
  run(args): Executes the command and returns the text to print, or an iterator
    of its parts, each printed as it comes; raises ValueError or OSError on bad
    input. The first line of its docstring is the help text of the command. It
    imports jax inside, not at the top of the module, so that bad input that
    needs no jax is answered at once.
"""
