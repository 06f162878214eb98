"""An experiment suite for image-text retrieval: published methods, one trainer, one evaluator.

``model = itr.load(RUN_DIR or "albef.pth")`` gives a model with ``model.encode_images(paths)``
[N, D] and ``model.encode_texts(list)`` [C, D]; ``itr.evaluate(scores, text_to_image)`` gives the
field's metrics of any score matrix [N, C].
"""

from typing import TYPE_CHECKING, Any

from itr.version import __version__

__all__ = ["__version__", "evaluate", "load"]

if TYPE_CHECKING:
    from itr.evaluation.score_matrices import evaluate
    from itr.jobs.retriever import load


def __getattr__(name: str) -> Any:
    """Import the two functions when they are asked for: most who import a part need neither."""
    if name == "load":
        from itr.jobs.retriever import load

        return load
    if name == "evaluate":
        from itr.evaluation.score_matrices import evaluate

        return evaluate
    raise AttributeError(f"module 'itr' has no attribute '{name}'")
