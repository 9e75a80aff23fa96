"""The tasks that `config.task` names, one file each, and their common opening."""
