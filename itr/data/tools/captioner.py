"""Writes captions of images with a captioner of Hugging Face. B images per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from itr.errors import ConfigError
from itr.hub import local_or_hub


class CaptionerOptions(NamedTuple):
    """What decides about the captions. The defaults are those of ALIP (Yang et al., 2023)."""

    model: str  # Hugging Face name or directory
    prompt: str = ""  # text that the captions continue, or the question of a chat model
    beams: int = 5
    max_tokens: int = 16  # that are generated
    no_repeat: int = 3  # no sequence of so many tokens occurs twice


class Captioner:
    """An image-text-to-text model with its processor.

    Raises ConfigError if it is not available or is no captioner.
    """

    def __init__(self, options: CaptionerOptions, device: str):
        from transformers import AutoModelForImageTextToText  # imported here because it is slow

        path = local_or_hub(options.model, "--model")
        try:
            self.processor, self.tokenizer = _load_processor(path)
            model = AutoModelForImageTextToText.from_pretrained(path)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"--model {options.model}: cannot be loaded ({str(error).splitlines()[0]:.200}); "
                "expected a captioner such as BLIP, GIT or another image-text-to-text model"
            ) from error
        self.options, self.device = options, torch.device(device)
        self.model = model.eval().to(self.device)
        if self.tokenizer.padding_side != "left" and not self.model.config.is_encoder_decoder:
            self.tokenizer.padding_side = "left"  # generated tokens follow the prompt

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[str]:
        """A caption of each image, uint8 [3, H, W]; empty if the model says nothing."""
        options = self.options
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        inputs = self._inputs(pictures).to(self.device)
        tokens = self.model.generate(
            **inputs,
            num_beams=options.beams,
            max_new_tokens=options.max_tokens,
            no_repeat_ngram_size=options.no_repeat,
            do_sample=False,
        )
        prompt = inputs.get("input_ids")
        if prompt is not None and tokens.shape[1] >= prompt.shape[1]:
            if torch.equal(tokens[:, : prompt.shape[1]], prompt):
                tokens = tokens[:, prompt.shape[1] :]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _inputs(self, pictures: list[Any]) -> Any:
        """The model's inputs: pixels and, if there is a prompt, its tokens."""
        prompt = self.options.prompt
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt or "Describe the image."}]
            chat = [{"role": "user", "content": content}]
            prompt = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        if not prompt:
            return self.processor(images=pictures, return_tensors="pt")
        texts = [prompt] * len(pictures)
        inputs = self.processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        if self.model.config.model_type == "git":  # its tokenizer ends a prompt as a caption ends
            for name in ("input_ids", "attention_mask"):
                inputs[name] = inputs[name][:, :-1]
        return inputs


def _load_processor(path: str) -> tuple[Any, Any]:
    """The processor and its tokenizer; some captioners have an image processor beside one."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    processor = AutoProcessor.from_pretrained(path)
    if hasattr(processor, "image_processor") and hasattr(processor, "tokenizer"):
        return processor, processor.tokenizer
    return AutoImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path)
