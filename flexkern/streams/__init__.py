"""Streams of experiences: what a continual learner meets, one item after the other."""

from flexkern.streams.base import Experience, Stream
from flexkern.streams.blurry import blurry
from flexkern.streams.by_tasks import by_tasks
from flexkern.streams.class_incremental import class_incremental, class_order
from flexkern.streams.class_repetition import class_repetition
from flexkern.streams.datasets import images_of
from flexkern.streams.digits import bundled_digits, mnist
from flexkern.streams.domain_folders import core50, domainnet
from flexkern.streams.domain_incremental import domain_incremental
from flexkern.streams.domains import corrupted, corrupted_domains, digit_domains
from flexkern.streams.folders import image_folder, image_folders
from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import Images
from flexkern.streams.online import OnlineStream, online
from flexkern.streams.packs import image_pack
from flexkern.streams.shards import image_shards
from flexkern.streams.two_digit import TwoDigitItems, two_digit_items, two_digit_stream

__all__ = [
    "Experience",
    "ImageSource",
    "Images",
    "OnlineStream",
    "Stream",
    "TwoDigitItems",
    "blurry",
    "bundled_digits",
    "by_tasks",
    "class_incremental",
    "class_order",
    "class_repetition",
    "core50",
    "corrupted",
    "corrupted_domains",
    "digit_domains",
    "domain_incremental",
    "domainnet",
    "image_folder",
    "image_folders",
    "image_pack",
    "image_shards",
    "images_of",
    "mnist",
    "online",
    "two_digit_items",
    "two_digit_stream",
]
