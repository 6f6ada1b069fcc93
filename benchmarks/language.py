"""Whether networks of Hugging Face's transformers are taken, and how long it takes to read and to certify them.

    python benchmarks/language.py [--networks bert gpt2 ...] [--limit 20] [--threads 1] [--out FOLDER]

Needs transformers. Sizes as they are published where nothing else is said, random weights, sequences of 16 tokens, images of 64 x 64. The
columns are those of benchmarks/vision.py.
"""

from vision import run

#: The class, and the settings that differ from the defaults of its configuration.
NETWORKS = {
    "bert": ("BertForSequenceClassification", {}),
    "roberta": ("RobertaForSequenceClassification", {}),
    "distilbert": ("DistilBertForSequenceClassification", {}),
    "albert": (
        "AlbertForSequenceClassification",
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
    "xlnet": ("XLNetForSequenceClassification", {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072}),
    "t5": ("T5ForConditionalGeneration", {"decoder_start_token_id": 0}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "opt": ("OPTForCausalLM", {}),
    # As SmolLM-135M: nine heads, of which three share keys and values.
    "llama": (
        "LlamaForCausalLM",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "mamba": ("MambaForCausalLM", {"num_hidden_layers": 24}),
    "beit": ("BeitForImageClassification", {"use_relative_position_bias": True, "image_size": 64}),
    "segformer": ("SegformerForImageClassification", {}),
    "patchtst": ("PatchTSTForRegression", {"num_targets": 2}),
}


def build(name):
    """A network with random weights, of which the first output is the result; and inputs."""
    import torch
    import transformers

    kind, settings = NETWORKS[name]
    model = getattr(transformers, kind)
    cached = {"use_cache": False} if kind.endswith(("LM", "LMHeadModel", "Generation")) else {}
    net = model(model.config_class(**settings, **cached))

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            more = {"decoder_input_ids": x} if name == "t5" else {}
            return self.net(x, **more, return_dict=True)[0 if name != "patchtst" else "regression_outputs"]

    if name in ("beit", "segformer"):
        return Logits(), torch.randn(2, 3, *[getattr(net.config, "image_size", 64)] * 2)
    if name == "patchtst":
        return Logits(), torch.randn(2, net.config.context_length, net.config.num_input_channels)
    return Logits(), torch.randint(1, 1000, (2, 16))


if __name__ == "__main__":
    run(__doc__, "language", list(NETWORKS), build)
