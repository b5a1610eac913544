"""The embedded data sets: scenes of digits and of garments, written and registered like COCO."""

from evonorm_d2.data.digits import default_folder, register_digits, write_digits
from evonorm_d2.data.garments import register_garments, write_garments

__all__ = [
    "default_folder",
    "register_digits",
    "register_embedded",
    "register_garments",
    "write_digits",
    "write_garments",
]


def register_embedded() -> None:
    """Register both data sets in the folder of Detectron2's data sets, unless they are."""
    register_digits()
    register_garments()
