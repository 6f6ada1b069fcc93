"""What does a user bring?

- `arrays`: arrays checked and turned into tensors; standardisation; minibatches; seeds
- `names`: names of columns and rows
- `tables`: files of numbers with a header; `mixed`: with text, gaps and dates; `opened` finds the reader of a file
- `frames`, `dates`, `encoding`: columns of any kind as numbers
- `observed`: targets with weights, error bars and gaps
- `sources`, `opening`, `row_groups`: data that need not fit in memory
- `datasets`, `images`: toy data, the UCI regression data sets, images; `remote` downloads files
"""

from ..base.lazy import exports

__getattr__, __all__ = exports(
    __name__,
    {
        "arrays": ["Standardizer", "as_tensor", "make_generator", "minibatches", "noise_stream"],
        "tables": ["DataError", "Dataset", "Split", "column_names", "read_table"],
        "datasets": ["UCI", "Toy", "load_uci", "toy_cubic", "toy_gp"],
    },
)
