"""The implicit bias of ERM and of Mixup on separable toy data."""
