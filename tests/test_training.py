import json
from pathlib import Path
import pytest, torch
from minccm.io.weights import save_model
from minccm.model import LlamaConfig, Transformer
from tests.conftest import ROOT
TINY = ROOT / "data" / "tiny"


def save_micro(folder: Path) -> Path:
    """Writes a model too small to be clever, with the tokenizer that ships, in the official layout."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes((TINY / "tokenizer.model").read_bytes())
    vocab_size = json.loads((TINY / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size, dim=32, ffn_dim=48, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16)
    save_model(folder, Transformer(config), torch.float32)
    return folder
