"""The command line: `treepo train`, `treepo rollout`, `treepo eval`."""
