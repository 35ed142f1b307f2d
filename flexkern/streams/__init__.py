"""Streams of experiences: what a continual learner meets, one item after the other."""

from flexkern.streams.base import Experience, Stream
from flexkern.streams.class_incremental import class_incremental, class_order
from flexkern.streams.datasets import images_of
from flexkern.streams.digits import bundled_digits, mnist
from flexkern.streams.folders import image_folder, image_folders
from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import Images
from flexkern.streams.packs import image_pack
from flexkern.streams.shards import image_shards
from flexkern.streams.two_digit import TwoDigitItems, two_digit_items, two_digit_stream

__all__ = [
    "Experience",
    "ImageSource",
    "Images",
    "Stream",
    "TwoDigitItems",
    "bundled_digits",
    "class_incremental",
    "class_order",
    "image_folder",
    "image_folders",
    "image_pack",
    "image_shards",
    "images_of",
    "mnist",
    "two_digit_items",
    "two_digit_stream",
]
