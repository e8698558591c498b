"""Experiments that settle claims: functions `(*, fast: bool = FAST) -> a frozen dataclass of what was found`."""
