"""What `config.task` names, one file for each, and what all of them open alike."""
