"""Healing: what truncation lost is won back by imitating the dense model, without labels."""

from lowrank.healing.clock import Work
from lowrank.healing.heal import Healed, Healing
from lowrank.healing.session import AdapterOptions, Session, start

__all__ = ["AdapterOptions", "Healed", "Healing", "Session", "Work", "start"]
