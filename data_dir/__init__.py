"""Real data sets: from raw files to batches.

    download_uea.py    raw files of the UEA archive into raw/                  (a script)
    process_uea.py     raw files into processed/UEA/NAME/*.pkl                 (a script; reads ts and arff)
    datasets.py        a processed set, split by seed, as three loaders        (create_dataset)
    dataloaders.py     batches of a split
    splits.py          the published split of a seed
    pickles.py         arrays in pickles, read without running what they name
    storage.py         the folders, the errors, writing that leaves nothing half done

Axis names: n samples, L time steps, C channels, K classes.
"""
