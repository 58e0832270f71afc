"""Data sets by name, from an embedded one to the published files of the benchmarks."""

from deep.data.images import IMAGE_SETS, ImageData, load_images

__all__ = ["IMAGE_SETS", "ImageData", "load_images"]
