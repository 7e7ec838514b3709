"""The families of checkpoints: a new one is one file here and one line in the table."""

from unmask.models.families import unmask
from unmask.models.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (unmask.FAMILY,)}
