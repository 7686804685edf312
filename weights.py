"""Weights and adapters in and out: measure how a model is read, write a random one, export an adapter.

python weights.py --model DIR                       # how long reading it takes, and how much memory
python weights.py --model random:7b --out DIR       # random weights in LLaMA's shape, in shards
python weights.py --adapter runs/mine --out DIR     # an adapter of ours in the authors' layout
"""

import re
import shutil
import threading
import time
from pathlib import Path

import torch

from minccm import cli
from minccm.checkpoint import AUTHORS_NAMES, load_model, read_ours, save_model
from minccm.files import make_folder, write_json, write_whole


def measure(source: str, device: torch.device, dtype: torch.dtype):
    """The model that load_model reads, and a dict of seconds and MiB.

    Host memory is what the process holds beyond the mapped file (RssAnon, of which Linux tells no peak: a thread
    looks every 2 ms), less what it held before.
    """
    done, seen = threading.Event(), []

    def watch():
        while not done.wait(0.002):
            status = Path("/proc/self/status").read_text()
            seen.append(int(re.search(r"RssAnon:\s*(\d+) kB", status)[1]) * 1024)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    time.sleep(0.05)
    before, began = seen[-1], time.perf_counter()
    model = load_model(source, device, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize()
    figures = {"seconds": round(time.perf_counter() - began, 2)}
    done.set()
    thread.join()
    sizes = [weight.nbytes for weight in model.parameters()]
    memory = {"model": sum(sizes), "largest tensor": max(sizes), "host peak": max(seen) - before}
    if device.type == "cuda":
        memory |= {"GPU peak": torch.cuda.max_memory_allocated()}
    return model, figures | {f"{name} MiB": nbytes >> 20 for name, nbytes in memory.items()}


def export_adapter(folder: str | Path, out: str | Path) -> Path:
    """Writes an adapter of ours as the authors' code saves and names it, below `out`; returns its folder.

    One that was trained on top of a step-1 adapter goes to finetune/, the step-1 adapter beside that, as theirs do.
    """
    folder, out = Path(folder), Path(out)
    info, parts = read_ours(folder, None)
    tensors = {name: part.read() for name, (part,) in parts.items()}
    ours = {ours: theirs for theirs, ours in AUTHORS_NAMES.items()}
    theirs = ours.get(info["method"])
    if theirs is None and info["method"] != "full":
        raise ValueError(f"{folder}: the authors' code has no {info['method']}, but {', '.join(ours)}")
    title = [str(info.get("base_name", "llama"))]
    if (folder / "init" / "adapter.json").is_file():
        title = ["finetune/" + export_adapter(folder / "init", out).name]
    elif (folder / "init").is_dir():  # theirs
        shutil.copytree(folder / "init", make_folder(out) / f"{title[0]}-no", dirs_exist_ok=True)
        title = [f"finetune/{title[0]}-no"]
    if theirs is None:
        title += ["no"]
    else:
        title += ["fixed" if theirs == "gist" else "online", theirs, f"ntok{info['n']}"] + ["sink"] * info["sink"]
    if "merge" in info["method"]:  # rows for their SUM tokens, of which nothing is ever used
        tensors["comp_embeddings"] = tensors["comp_embeddings"].repeat(2, 1)
    folder = make_folder(out / "-".join(title))
    names = {name: name.replace("comp_", "embed_tokens.comp_") for name in tensors}
    raw = {f"base_model.model.model.{names[name]}.weight": tensor.clone() for name, tensor in tensors.items()}
    write_whole(folder / "pytorch_model.bin", lambda path: torch.save(raw, path))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": info["r"], "lora_alpha": info["alpha"]}
    config |= {"lora_dropout": 0.05, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "bias": "none"}
    config |= {"fan_in_fan_out": False, "inference_mode": True, "base_model_name_or_path": None}
    write_json(folder / "adapter_config.json", config)
    return folder


def main():
    parser = cli.parser(__doc__.split("\n")[0])
    parser.add_argument("--adapter", default=None, help="an adapter of ours, to write to --out in the authors' layout")
    parser.add_argument("--out", default=None, help="folder to write to")
    options = parser.parse_args()
    if options.adapter:
        if not options.out:
            raise ValueError("--adapter is to be written: give a folder with --out")
        return print(export_adapter(options.adapter, options.out))
    device, dtype = cli.device_and_dtype(options)
    model, figures = measure(options.model, device, dtype)
    print(", ".join(f"{name} {figure}" for name, figure in figures.items()))
    if options.out:
        save_model(options.out, model, dtype)


if __name__ == "__main__":
    cli.run(main)
