"""Cases that are known and whose method or task is not built yet: skipped, never unknown."""

NOT_BUILT: dict[str, tuple[str, ...]] = {
    "hrem": (),
    "user": (),
    "alip": (),
    "albef": (
        "grounding_",
        "nlvr2_",
        "ve_",
        "vqa_",
    ),
    "multisea": (),
}
