"""A model that says what a test wants: bytes as tokens, replies chosen by what the prompt holds."""

from __future__ import annotations

from collections.abc import Mapping

import tabes
import torch
from tabes.text import Tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

SPECIAL = ["<mask>", "<eos>", "<user>", "<reply>"]
CHAT = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<reply>"


def byte_tokenizer(chat: bool) -> Tokenizer:
    """One token for every byte of a text, then the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    mask = backend.token_to_id("<mask>")
    return Tokenizer(backend, mask_token_id=mask, chat_template=CHAT if chat else None)


def scripted_model(
    replies: Mapping[str, str], *, marker: str | None = None, max_length: int | None = None
) -> tabes.Model:
    """Every position behind the marker is predicted as the reply whose key the prompt holds says,
    positions behind the reply as the end token.

    Without a marker the model has a chat template, whose reply token is the marker.
    """
    tokenizer = byte_tokenizer(chat=marker is None)
    size = tokenizer.vocab_size
    mask, end, reply_token = map(tokenizer.backend.token_to_id, ("<mask>", "<eos>", "<reply>"))
    names = [tokenizer.piece(i) if i < 256 else "\0" for i in range(size)]
    for i in range(256):
        names[i] = names[i] if len(names[i]) == 1 else "\1"
    names[reply_token] = "\2"
    behind = "\2" if marker is None else marker

    def predict(inputs_embeds: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*inputs_embeds.shape[:2], size)
        for row, tokens in enumerate(inputs_embeds.argmax(-1).tolist()):
            first = tokens.index(mask) if mask in tokens else len(tokens)
            before = "".join(names[t] for t in tokens[:first])
            text = next((reply for key, reply in replies.items() if key in before), None)
            if behind not in before or text is None:
                continue
            start = before.rindex(behind) + len(behind)
            wanted = tokenizer.backend.encode(text, add_special_tokens=False).ids
            for position in range(start, len(tokens)):
                k = position - start
                logits[row, position, wanted[k] if k < len(wanted) else end] = 20.0
        return logits

    return tabes.wrap(
        predict,
        mask_token_id=mask,
        tokenizer=tokenizer,
        embedding_table=torch.eye(size),
        max_length=max_length,
        eos_token_ids=[end],
    )
