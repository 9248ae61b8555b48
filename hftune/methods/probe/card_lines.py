# SPDX-License-Identifier: Apache-2.0
"""The lines that use a saved probe with plain Transformers, scikit-learn and skops."""

import json
from string import Template

from hftune.models.save import ModelMetadata

POOLED = {
    "mean": ("mask = batch[\"attention_mask\"][..., None]",
             "return ((hidden * mask).sum(1) / mask.sum(1)).numpy()"),
    "cls": ("first = batch[\"attention_mask\"].argmax(1)",
            "return hidden[torch.arange(len(hidden)), first].numpy()"),
    "last": ("last = (batch[\"attention_mask\"] * torch.arange(1, hidden.shape[1] + 1)).argmax(1)",
             "return hidden[torch.arange(len(hidden)), last].numpy()"),
}  # fmt: skip
SHARES = "[dict(zip(labels, row)) for row in probe.predict_proba(features(**batch)).tolist()]"
NUMBERS = "probe.predict(features(**batch)).tolist()"
CODE = Template("""\
import json
from pathlib import Path

import skops.io
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

file = cached_file(filename="probe.json", path_or_repo_id=$place)
reading = json.loads(Path(file).read_text())
model = AutoModel.from_pretrained(
    reading["base_model_name_or_path"], revision=reading["revision"], dtype=reading["dtype"],
    **reading["config"],
).eval()$encoder
tokenizer = AutoTokenizer.from_pretrained($place)
file = cached_file(filename="probe.skops", path_or_repo_id=$place)
probe = skops.io.load(file, trusted=$trusted)
$labels
def features(**batch):
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).$hidden.float()
    $mask
    $pooled

def answers(*texts):
    batch = tokenizer(texts, padding=True, truncation=True$limit, return_tensors="pt")
    return $answer

print(answers("Put a text here."))
""")


def probe_code(metadata: ModelMetadata, place: str) -> list[str]:
    """Return the lines that make ``model``, ``tokenizer``, ``features``, ``probe`` and ``answers``.

    Args:
        metadata: What was fitted on what.
        place: The folder or Hub id, quoted, perhaps with a revision.
    """
    assert metadata.probe is not None
    said = metadata.probe
    mask, pooled = POOLED[said["pooling"]]
    layer = said["layer"]
    names = [metadata.label_names[index] for index in said["classes"]]
    limit = "" if metadata.max_length is None else f", max_length={metadata.max_length}"
    text = CODE.substitute(
        place=place,
        encoder=".get_encoder()" if said["encoder_only"] else "",
        trusted=json.dumps(said["trusted"]),
        hidden="last_hidden_state" if layer == -1 else f"hidden_states[{layer}]",
        mask=mask,
        pooled=pooled,
        limit=limit,
        labels=f"labels = {json.dumps(names, ensure_ascii=False)}\n" if names else "",
        answer=SHARES if names else NUMBERS,
    )
    return text.splitlines()
