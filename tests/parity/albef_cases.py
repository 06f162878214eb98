"""Golden cases of ALBEF: towers and the authors' checkpoints; the list of all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itr.nn.bert.halves import fusion_half, split_whole_bert, text_half, text_states
from itr.nn.position import resize_positions
from itr.nn.vit import random_vit
from itr.official.albef import official_state, read
from tests.parity import (
    albef_entailment,
    albef_grounding,
    albef_items,
    albef_pairs,
    albef_questions,
    pixel_data_cases,
)
from tests.parity.albef_build import (
    batch_of,
    config_of,
    image_config,
    model_from,
    model_of,
    text_config,
)
from tests.parity.albef_evaluation import evaluation, metrics
from tests.parity.albef_files import check_round_trip, told
from tests.parity.albef_gradcam import gradcam, gradcam_overlay
from tests.parity.albef_losses import itc_loss, masking
from tests.parity.albef_ranks import ddp_step
from tests.parity.albef_training import lr_schedule, multi_step, param_groups, train_step
from tests.parity.harness import Case, Runner

# Towers


def vit_forward(case: Case) -> None:
    size = image_config(case.data["model"])
    vit = random_vit(size)
    vit.load_state_dict(case.below("state."))
    vit.eval()
    seen: dict[str, Tensor] = {}
    vit.norm_pre.register_forward_hook(lambda _m, _i, output: seen.update(tokens=output))
    for number, block in enumerate(vit.blocks):
        block.register_forward_hook(
            lambda _m, _i, output, name=f"block_{number}": seen.update({name: output})
        )
    last = vit.blocks[-1].attn
    last.qkv.register_forward_hook(lambda _m, _i, output: seen.update(qkv=output))
    final = vit.forward_features(case["in.image"])
    qkv = seen.pop("qkv").unflatten(2, (3, size.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = qkv[0] @ qkv[1].transpose(-1, -2) / math.sqrt(qkv.shape[-1])
    seen["attn_block_last"], seen["final"] = scores.softmax(-1), final
    for name, value in seen.items():
        case.check(f"out.{name}", value)


def xbert_modes(case: Case) -> None:
    text = text_config(case.data["model"])
    state = {k.removeprefix("bert."): v for k, v in case.below("state.").items()}
    lower, upper = split_whole_bert(state, text.fusion_layer)
    bert = text_half(text, case.data["model"]["vocab_size"]).eval()
    lower.pop("embeddings.position_ids", None)
    bert.load_state_dict(lower)
    fusion = fusion_half(text, case.data["model"]["encoder_width"]).eval()
    fusion.load_state_dict(upper)
    ids, mask = case["in.input_ids"], case["in.attention_mask"].bool()
    seen: list[Tensor] = []
    bert.embeddings.register_forward_hook(lambda _m, _i, output: seen.append(output))
    for layer in bert.encoder.layer:
        layer.register_forward_hook(
            lambda _m, _i, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    states = text_states(bert, ids, mask)
    for number, value in enumerate(seen):
        case.check(f"out.text_hidden_{number}", value)
    images = fusion.keys_values(case["in.image_embeds"])
    fused = fusion(states, mask, images)
    case.check("out.fusion", fused)
    case.check("out.multi_modal", fused)
    first = fusion(states, mask, images, first_only=True)
    case.equal("first_only", first, fused[:, :1], atol=case.tolerance("out.fusion")[0])
    hidden = case["in.image_mask_partial"].bool()
    case.check("out.multi_modal_partial", fusion(states, mask, images, image_mask=hidden))
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None, :]
    case.check("out.causal", fusion(text_states(bert, ids, causal), causal, images))


def positions(case: Case) -> None:
    for name, (_, grid) in case.data["grids"].items():
        case.check(f"out.{name}", resize_positions(case[f"in.{name}"], grid))


def forward_eval(case: Case) -> None:
    model = model_of(case).eval()
    ids, mask = case["in.input_ids"], case["in.attention_mask"].bool()
    batch = batch_of(case["in.image"], ids, mask, None)
    images, texts = model.encode_images(batch), model.encode_texts(batch)
    assert images.tokens is not None and texts.tokens is not None
    case.check("out.image_embeds", images.tokens)
    case.check("out.image_feat", images.pooled)
    case.check("out.text_embeds", texts.tokens)
    case.check("out.text_feat", texts.pooled)
    case.check("out.sims", images.pooled @ texts.pooled.t())
    fused = model.fusion.keys_values(images.tokens)
    case.check("out.fusion_diag", model.fusion(texts.tokens, mask, fused))
    count = len(ids)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    scores = model.rerank(images, texts, pairs, "i2t").view(count, count)
    case.equal("rerank", scores, case["out.itm_all"][..., 1], case.tolerance("out.itm_all")[0])
    everything = model.fusion(texts.tokens[pairs[:, 1]], mask[pairs[:, 1]], fused, pairs[:, 0])
    case.check("out.itm_all", model.itm_head(everything[:, 0]).view(count, count, 2))


# The authors' checkpoints


def checkpoint_import(case: Case) -> None:
    imported = read(case.path.parent / case.data["files"][0], told(case))
    image = image_config({**case.data["model"]["vit"], "img_size": case.data["target_image_res"]})
    config = config_of(case, "retrieval", image=image, queue_size=imported.config.queue_size)
    model = model_from(config, imported.facts)
    result = model.load_state_dict(model.fit_weights(imported.state), strict=False)
    case.holds(f"missing {result.missing_keys}", result.missing_keys == ["text_queue.ids"])
    heads = {k.removeprefix("twin.").split(".")[0] for k in result.unexpected_keys}
    case.holds(f"unexpected {result.unexpected_keys}", heads == {"words"})
    found = official_state(model)
    for name in case.below("post."):
        case.check(f"post.{name}", found[name])


RUNNERS: dict[str, Runner] = {
    **albef_items.RUNNERS,
    **albef_entailment.RUNNERS,
    **albef_grounding.RUNNERS,
    **albef_pairs.RUNNERS,
    **albef_questions.RUNNERS,
    **pixel_data_cases.ALBEF,
    "checkpoint_finetuned": check_round_trip,
    "checkpoint_import": checkpoint_import,
    "evaluation_rerank": evaluation,
    "gradcam": gradcam,
    "gradcam_overlay": gradcam_overlay,
    "itc_loss": itc_loss,
    "lr_schedule": lr_schedule,
    "mlm_masking": masking,
    "param_groups": param_groups,
    "pos_embed_interpolation": positions,
    "pretrain_multi_step": multi_step,
    "pretrain_train_step": train_step,
    "retrieval_ddp_2ranks": ddp_step,
    "retrieval_forward_eval": forward_eval,
    "retrieval_metrics": metrics,
    "retrieval_multi_step": multi_step,
    "retrieval_train_step": train_step,
    "vit_forward": vit_forward,
    "xbert_modes": xbert_modes,
}
