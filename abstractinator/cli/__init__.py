"""The commands of `abstractinator`, one a file.

A module is named as its command (with _ for -) and has:

  ABOUT: What it does, one line.
  add_arguments(parser): Adds its arguments to a parser of argparse.
  run(args): Does it and returns what to print, or an iterator of its parts as
    they come; raises ValueError or OSError on bad input. It imports jax here,
    not above, so that bad input that needs no jax is answered at once.
"""
