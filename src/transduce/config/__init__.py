"""Every setting of a run; TOML, overrides, and what a resumed run may change."""
