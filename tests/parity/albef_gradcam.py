"""Golden cases of ALBEF's heat maps: Grad-CAM in both modes, and the picture under a map."""

from __future__ import annotations

from itr.data.text.tokenizer import Tokenizer
from itr.models.albef.grounding_maps import word_trace
from itr.nn.gradcam import caption_maps, class_maps, trace_attention, word_maps
from itr.results.gallery.overlay import overlay, smooth_map
from itr.view import TextView
from tests.parity.albef_build import batch_of, model_of
from tests.parity.albef_evaluation import padded
from tests.parity.harness import Case


def gradcam(case: Case) -> None:
    model = model_of(case).eval()
    view = TextView(cleaner="albef", end=False, max_length=30)
    tokenizer = Tokenizer.from_vocab(case.data["vocab"])
    ids, mask = padded(tokenizer, case.data["texts"], view)
    case.check("out.input_ids", ids)
    case.check("out.attention_mask", mask.long())
    batch = batch_of(case["in.image"], ids, mask, None)
    block = case.data["block_num"]["itm"]
    seen = word_trace(model, batch, batch, block)
    case.check("out.cross_attention", seen.probabilities)
    case.check("out.cross_attention_grad", seen.gradient)
    case.check("out.itm", caption_maps(seen.evidence, mask))
    alone, only = padded(tokenizer, case.data["texts"][:1], view)
    first = batch_of(case["in.image"][:1], alone, only, None)
    case.check("out.word_maps", word_maps(word_trace(model, first, first, block).evidence)[0])

    def cosines():  # of each image with its own caption, as the contrast scales them
        images, texts = model.encode_images(batch).pooled, model.encode_texts(batch).pooled
        return ((images * texts).sum() / model.temperature).sum()

    block = model.vision.blocks[case.data["block_num"]["itc"]]
    case.check("out.itc", class_maps(trace_attention(block.attn, cosines).evidence))


def gradcam_overlay(case: Case) -> None:
    image = case["in.image"].numpy()
    heat = smooth_map(case["in.att"].numpy(), *image.shape[:2])
    case.check("out.heat", heat)
    case.check("out.overlay", overlay(image, heat))
