"""The budget: an amount of device time, FLOPs, tokens or steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cram.errors import CramError

SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
UNITS = "'24h', '90s', '1h30m', '3e18 flops', '2e9 tokens', '500 steps'"


@dataclass(frozen=True)
class Budget:
    """An amount of one unit: kind is 'time' (seconds), 'flops', 'tokens' or 'steps'."""

    kind: str
    amount: float
    text: str

    @staticmethod
    def parse(text: str) -> "Budget":
        """Read '24h', '1h30m', '3e18 flops', ... Raises CramError for anything else."""
        cleaned = text.strip().lower()
        number = r"\d+(?:\.\d*)?(?:e\+?\d+)?"
        if re.fullmatch(rf"(?:{number}[hms])+", cleaned):
            parts = re.findall(rf"({number})([hms])", cleaned)
            budget = Budget("time", sum(float(value) * SECONDS[unit] for value, unit in parts), text)
        elif match := re.fullmatch(rf"({number})\s*(flops|tokens|steps)", cleaned):
            budget = Budget(match[2], float(match[1]), text)
        elif cleaned.startswith("-"):
            raise CramError(f"budget '{text}': must be more than zero; write for example {UNITS}")
        elif re.fullmatch(number, cleaned):
            raise CramError(f"budget '{text}': has no unit; did you mean '{text}h'? Possible: {UNITS}")
        else:
            raise CramError(f"budget '{text}': not understood; write for example {UNITS}")
        if budget.amount <= 0 or budget.amount == float("inf"):
            raise CramError(f"budget '{text}': must be finite and more than zero; write for example {UNITS}")
        if budget.kind == "steps" and budget.amount != int(budget.amount):
            raise CramError(f"budget '{text}': steps are whole numbers")
        return budget

    def show(self, amount: float) -> str:
        """An amount of this budget's unit, for people."""
        if self.kind != "time":
            return f"{amount:.4g} {self.kind}"
        minutes, seconds = divmod(max(amount, 0.0), 60)
        hours, minutes = divmod(int(minutes), 60)
        return f"{hours}h{minutes:02}m{seconds:02.0f}s" if hours else f"{minutes}m{seconds:04.1f}s"
