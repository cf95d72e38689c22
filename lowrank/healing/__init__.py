"""Healing: what truncation lost is won back by imitating the dense model, without labels."""

from lowrank.healing.checkpoint import CHECKPOINT_FILE
from lowrank.healing.heal import Healed, Healing
from lowrank.healing.session import start
from lowrank.healing.work import Work

__all__ = ["CHECKPOINT_FILE", "Healed", "Healing", "Work", "start"]
