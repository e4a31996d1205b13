"""What a model's torch calls become inside a meta-step."""
