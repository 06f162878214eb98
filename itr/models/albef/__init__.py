"""ALBEF: Align before Fuse, vision and language learning with momentum distillation (NeurIPS 2021).

Li, Selvaraju, Gotmare, Joty, Xiong, Hoi. A ViT and the lower half of BERT are aligned by an
image-text contrastive loss (ITC); its candidates and soft targets come from momentum encoders. The
upper half of BERT fuses both modalities. It predicts whether a pair matches (ITM, also used for
re-ranking) and, in pre-training, masked words (MLM).
"""

from itr.models.albef.config import ALBEFConfig
from itr.models.albef.model import ALBEF
from itr.models.albef.unimodal import (
    ALBEFFeatures,
    image_features,
    text_features,
)

__all__ = [
    "ALBEF",
    "ALBEFConfig",
    "ALBEFFeatures",
    "image_features",
    "text_features",
]
