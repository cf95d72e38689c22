"""python -m lowrank."""

from lowrank.cli import main

main()
