"""The mathematics of Mixup and MixupE, computed exactly."""
