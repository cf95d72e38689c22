"""python -m lowrank."""

from lowrank.cli.app import main

main()
