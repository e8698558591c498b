"""Files written whole or not at all, locks, and files that certify themselves."""
