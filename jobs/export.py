"""Write a checkpoint as a file that runs without this library: torch.export, AOTInductor or ONNX.

python jobs/export.py --format onnx --checkpoint RUN/checkpoint --output model.onnx --data DATA
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from afm_dist.runtime import console


@dataclass(kw_only=True)
class Export:
    """Write a checkpoint as a file that runs without this library."""

    format: Literal["torch-export", "aoti", "onnx"]
    """torch-export: a graph for any PyTorch. aoti: compiled for this machine's kind of processor and this
    release of PyTorch (needs a C++ compiler, takes a minute). onnx: for ONNX Runtime and other readers."""
    checkpoint: str
    """Checkpoint directory."""
    output: str
    """The file, ending in .pt2 (torch-export, aoti) or .onnx."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the tables in the file; all else, and every computation, is float32."""
    overwrite: bool = False
    """Replace a file of another model in OUTPUT."""
    data: str | None = None
    """Dataset directory: the file is checked on 10,000 of its rows too (of the test split, if it has any)."""


def main(config: Export) -> None:
    """Run the job."""
    console.info(f"afm-dist export: {config.checkpoint} to {config.output} ({config.format})")
    # torch takes seconds to import: after the first line.
    from afm_dist import storage
    from afm_dist.checkpoint import preprocessing
    from afm_dist.checkpoint.config import check_schema, load_config
    from afm_dist.checkpoint.pretrained import from_pretrained
    from afm_dist.dataset.manifest import Manifest
    from afm_dist.errors import OptionError
    from afm_dist.export.check import ROUND_OFF
    from afm_dist.export.export import BOUNDS, PREPROCESSING_SUFFIX, check_format, export, written_bytes
    from afm_dist.runtime.cluster import check_paths
    from afm_dist.runtime.machine import work_in_driver

    check_paths(checkpoint=config.checkpoint, output=config.output, data=config.data)
    check_format(config.format, config.output)
    model_config = load_config(config.checkpoint)
    data = Manifest.load(storage.absolute(config.data)) if config.data else None
    if data:
        if not any(shard.rows for shards in data.splits.values() for shard in shards):
            raise OptionError(
                f"--data {config.data}: has no rows to check the file on (so has a checkpoint's folder "
                "preprocessing); give the dataset directory that jobs/prepare.py made"
            )
        check_schema(model_config, data, checkpoint=config.checkpoint)
    vocabulary = preprocessing.find(config.checkpoint, data)
    work_in_driver()
    model = from_pretrained(config.checkpoint)
    parity = export(
        model,
        model_config,
        config.format,
        config.output,
        precision=config.precision,
        data=data,
        vocabulary=vocabulary,
        overwrite=config.overwrite,
    )
    console.info(
        f"largest difference of a logit from the checkpoint's: {parity.difference:.2g} on {parity.rows:,} "
        f"rows, {parity.real_rows:,} of them of the dataset (accepted: {BOUNDS[config.precision]:.2g}, or "
        f"{ROUND_OFF:.2g} of the largest logit)"
    )
    if not parity.real_rows:
        console.warn(
            f"{config.output}: was compared with the checkpoint on made-up rows only; to have it compared on "
            "real ones too, give their dataset with --data"
        )
    console.info("a row with an id outside its field gives NaN, and changes no other row")
    if vocabulary:
        console.info(f"vocabularies in {config.output}{PREPROCESSING_SUFFIX}")
    else:
        console.warn(
            f"{config.output}: no vocabularies are with it, for the checkpoint has none; give the dataset it "
            "was trained on with --data"
        )
    console.info(f"bytes       {written_bytes(config.output):,}")


if __name__ == "__main__":
    console.run_job(Export, main)
