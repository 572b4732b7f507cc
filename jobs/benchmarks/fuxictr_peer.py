"""Prepare a CSV with FuxiCTR, in an environment of its own; prints the seconds it took.

Run by the prepare suite with the interpreter of an environment that holds ``fuxictr`` and an older
Polars than ours (the extra ``peers``): it must import nothing of afm-dist.
"""

import os
import sys
import time

NUMBERS = [f"I{n}" for n in range(1, 14)]
TOKENS = [f"C{n}" for n in range(1, 27)]
# It refuses a split of fewer rows.
BLOCK_ROWS = 10_000


def main(train: str, validation: str, test: str, folder: str, threshold: str) -> None:
    """Fit and transform, as FuxiCTR's own Criteo configuration does."""
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    columns = [
        {
            "name": NUMBERS,
            "active": True,
            "dtype": "float",
            "type": "numeric",
            "normalizer": "StandardScaler",
        },
        {"name": TOKENS, "active": True, "dtype": "str", "type": "categorical"},
    ]
    encoder = FeatureProcessor(
        feature_cols=columns,
        label_col={"name": "label", "dtype": "float"},
        dataset_id="peer",
        data_root=folder,
    )
    started = time.perf_counter()
    build_dataset(
        encoder,
        train_data=train,
        valid_data=validation,
        test_data=test,
        min_categr_count=int(threshold),
        data_block_size=BLOCK_ROWS,
    )
    print(f"seconds {time.perf_counter() - started:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
