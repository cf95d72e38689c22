"""Damaged and hostile files for every reader: each ends in a result or in a `LowRankError`, soon and in little memory.

`seeds` makes a tiny valid file of each kind, `mutate` damages it, `readers` says which function reads it, `attempt`
tries one, and `hunt` many, in a process that may die.
"""
