"""The embedded data set: scenes of real handwritten digits, written and registered like COCO."""

from evonorm_d2.data.digits import default_folder, register_digits, write_digits

__all__ = ["default_folder", "register_digits", "write_digits"]
