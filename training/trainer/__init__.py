"""What trains any stage: the loop, its configuration, checkpoints, devices and ends. It knows no stage and no data."""
