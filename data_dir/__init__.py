"""Real data sets: from raw files to batches.

Scripts:
    download_uea.py    raw files of the UEA archive into raw/
    process_uea.py     raw files (ts, arff) into processed/UEA/NAME/
    process_ppg.py     PPG-DaLiA's recordings into processed/PPG/ppg/
    write_splits.py    the rows of the published splits into index files
Library, from the outside in:
    datasets.py        a processed set, split, as three loaders (create_dataset)
    dataloaders.py     batches of a part; prefetch.py draws them ahead
    splits.py          which rows train, validate and test
    processed.py       the files of a processed set, checked
    audit.py           what is odd about a set
    merging.py         the rows of a train and a test file; readers.py, the series of one file
    ppg.py             how a recording becomes windows with labels
    sources.py         where raw files come from; archives.py, zips; origin.py, the record of it
    pickles.py         arrays in pickles, read without running what they name; npy.py, arrays that are memory-mapped
    names.py           the sets that are known, and near misses
    storage.py         the folders, the errors, writing that leaves nothing half done; scratch.py, temporary folders
    scaling.py         standardised channels, and labels within the reach of tanh

Axis names: n samples, L time steps, C channels, K classes.
"""
