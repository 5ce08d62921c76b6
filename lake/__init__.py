"""The command line ``lake``: ``main`` runs it, ``app`` is what click makes of the declared commands."""

import sys

import lake.neighbours  # noqa: F401  (looks where the packages come from before they are imported)

try:
    from lake.shell import app as app
    from lake.shell import main as main
except KeyboardInterrupt:  # the second in which everything is imported
    sys.stderr.write("lake: stopped before anything was begun\n")
    raise SystemExit(130) from None
