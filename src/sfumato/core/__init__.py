"""What every other package stands on: errors, files, checkpoint files, registries, devices, pictures, random streams."""
