"""What a study brings: how its clips are found, a reliability signal of its own. Each job carries a copy."""
