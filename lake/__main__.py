"""``python -m lake``."""

from lake import main

main()
