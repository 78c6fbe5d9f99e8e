"""The command line: `treepo train`, `rollout`, `plan`, `eval` and `doctor`."""

EXIT_OK = 0
EXIT_FAULT_FOUND = 1
"""`treepo doctor` found something that makes results wrong."""
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report a program that Ctrl-C ended."""
EXIT_BROKEN_PIPE = 141
"""128 + SIGPIPE, as shells report a program whose output nobody reads on."""
