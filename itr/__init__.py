"""An experiment suite for image-text retrieval: published methods, one trainer, one evaluator.

``model = itr.load("RUN_DIR or a checkpoint file")`` loads a trained model;
``model.encode_images(paths)`` and ``model.encode_texts(captions)`` return embeddings [N, D] and
[C, D]. ``itr.evaluate(scores, text_to_image)`` computes the retrieval metrics of any score matrix
[N, C].
"""

from typing import TYPE_CHECKING, Any

from itr.version import __version__

__all__ = ["__version__", "evaluate", "load"]

if TYPE_CHECKING:
    from itr.evaluation.score_matrices import evaluate
    from itr.jobs.retriever import load


def __getattr__(name: str) -> Any:
    """Import `load` and `evaluate` lazily: importing a submodule must not import them all."""
    if name == "load":
        from itr.jobs.retriever import load

        return load
    if name == "evaluate":
        from itr.evaluation.score_matrices import evaluate

        return evaluate
    raise AttributeError(f"module 'itr' has no attribute '{name}'")
