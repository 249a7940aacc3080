"""Questions asked of a run, one file each: see CONTRIBUTING.md for the contract."""
