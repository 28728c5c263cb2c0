"""A folder, its task and the overrides to one frozen `RunSpec` with its keys. Loads no data and no model."""
