"""What a checkpoint is, told from its headers or from all of its bytes."""
