"""Products of few rows that round as those of many do."""

from __future__ import annotations

#: To so many copies a row is repeated before a product that needs it once. Products of very few rows are summed in
#: another order than those of many (on CPUs below four), so clips would differ in their last bits from those that were
#: computed row by row.
REPEATED = 32
